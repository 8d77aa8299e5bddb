"""LARS: layer-wise rates from the norm of the averaged gradient."""

from clars.optim.momentum import MomentumOptimizer


class LARS(MomentumOptimizer):
    """Layer-wise Adaptive Rate Scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888), with CLARS's step.

        ratio_k = trust_coefficient * ||w_k|| / (||g_k|| + weight_decay * ||w_k|| + eps)

    The same arguments as `CLARS`, without `norms`. Every layer is adapted, normalisation and bias included, unless
    `overrides` says otherwise; other implementations leave them out by themselves.
    """

    def denominators(self, gradient_norms, totals):
        return gradient_norms
