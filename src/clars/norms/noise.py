"""The gradient noise scale: at which batch size examples' gradients differ by as much as their mean is long."""

from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def estimates(
    batch_square: Number, sum_of_squares: Number, examples: Number, group_squares: Number
) -> tuple[Number, Number]:
    """Return unbiased estimates of tr(Sigma) and ||G||^2, of the examples' gradients' covariance and mean.

    With contributions c_u of groups of m_u out of B examples that sum to the gradient g of an averaged loss,

        E ||g||^2 = ||G||^2 + tr(Sigma) / B,     E sum_u ||c_u||^2 = ||G||^2 * sum_u (m_u / B)^2 + tr(Sigma) / B,

    which for groups of one are the formulas of McCandlish et al. 2018 (arXiv 1812.06162, appendix A.1). Both estimates
    are in the unit of the squared gradient.

    Args:
        batch_square: ||g||^2.
        sum_of_squares: sum_u ||c_u||^2.
        examples: B.
        group_squares: sum_u m_u^2; there is no estimate where all examples are one group.
    """
    true_square = (batch_square - sum_of_squares) / (1 - group_squares / examples**2)
    return examples * (batch_square - true_square), true_square
