"""CLARS: layer-wise rates from the mean of the per-example gradient norms."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UserError
from clars.layers import LayerUnit, covering
from clars.layers import layers as layers_of_model
from clars.norms import ExampleNorms
from clars.optim.momentum import MomentumOptimizer
from clars.optim.options import VECTORS, by_layer, fits
from clars.presets import author2019
from clars.sharding.layout import Layout


class CLARS(MomentumOptimizer):
    """Complete Layer-wise Adaptive Rate Scaling (Huo, Gu, Huang 2020, arXiv 2002.01576).

        ratio_k = trust_coefficient * ||w_k|| / (S_k + weight_decay * ||w_k|| + eps)

    with S_k the sum over examples of the norm of their contribution to the gradient of layer k: for an averaged loss,
    the mean of the per-example gradient norms (see `ExampleNorms`). With estimator="group" it is the sum over groups of
    consecutive examples: from groups of one to one group, CLARS passes into LARS. The update is stated at
    `MomentumOptimizer`.

    An ordinary torch optimizer with one parameter group per layer, in which "layer" is its name. It takes the model
    because S_k is formed in the model's backward pass. With several processes it assumes that gradients are averaged
    over all of them, as DistributedDataParallel does, and averages S_k alike, by one all-reduce per step.

    S_k is that of the gradient that is in `.grad`, as the backward passes have formed it. Gradients that are cleared,
    by whomever, take their part of it along, and a GradScaler's unscaling is followed. What else is done to `.grad`,
    such as clipping, changes the step and not the ratio.

    Args:
        model: the parameters that are trainable now are optimised; those unfrozen later are not. Dimension 0 of its
            input is the batch.
        lr: the global rate; layer k moves with lr * ratio_k.
        momentum: as in torch.optim.SGD.
        nesterov: as there; without it, heavy-ball momentum.
        weight_decay: added to the gradient, and part of the ratio's denominator unless decay_in_ratio is False.
        trust_coefficient: eta.
        layers: "module" (weight and bias of a module are one layer) or "parameter"; see `clars.layers`.
        overrides: options per layer-name pattern (fnmatch), e.g. {"*.bn*": {"weight_decay": 0.0, "adapt": False}}; the
            pattern "@1d" stands for the layers that hold only vectors, such as all normalisations.
            Options: lr, momentum, weight_decay, trust_coefficient, nesterov, adapt, max_ratio, decay_in_ratio,
            rate_in_buffer. Layers with adapt=False have the ratio 1 and are not tracked.
        norms: an `ExampleNorms` of the same layers, made before; by default one is made.
        estimator: of the `ExampleNorms` that is made: "exact", "group" or "subset".
        group: how many examples' contributions are summed before the norm is taken; 8 by default.
        fraction: the share of the batch to measure; 1/8 by default.
        eps: added to the denominator, in the gradient's unit.
        norm_floor: smallest root-mean-square weight assumed of a layer; see `MomentumOptimizer`.
        max_ratio: the largest ratio that an adapted layer may have.
        decay_in_ratio: whether weight_decay * ||w_k|| is part of the ratio's denominator.
        rate_in_buffer: whether momentum holds steps, or gradients to which the rate is applied; see
            `MomentumOptimizer`.

    Raises:
        ValueError: an impossible value, an unknown option, a pattern that matches nothing.
        UnsupportedLayerError: layers for which no exact norm is known; at `step()`, layers that have a gradient but no
            norms, because their parameters were used outside of their own forward.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
        nesterov: bool = True,
        layers: LayerUnit = "module",
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        norms: ExampleNorms | None = None,
        *,
        estimator: str = "exact",
        group: int | None = None,
        fraction: float | None = None,
        eps: float = 1e-8,
        norm_floor: float = 1e-3,
        max_ratio: float = inf,
        decay_in_ratio: bool = True,
        rate_in_buffer: bool = True,
    ) -> None:
        if norms is not None and (estimator != "exact" or group is not None or fraction is not None):
            raise ValueError("estimator, group and fraction belong to the ExampleNorms given as norms; set them there.")
        super().__init__(
            model,
            lr,
            momentum,
            weight_decay,
            trust_coefficient,
            nesterov,
            layers,
            overrides,
            eps=eps,
            norm_floor=norm_floor,
            max_ratio=max_ratio,
            decay_in_ratio=decay_in_ratio,
            rate_in_buffer=rate_in_buffer,
        )
        adapted = self._adapted()
        tracked = [layer for layer in self.layers if layer.name in adapted]
        options = {"layers": tracked, "group": group, "fraction": fraction}
        self.norms = norms if norms is not None else ExampleNorms(model, estimator, **options)
        self.norms.advise(self.remedy)
        self._tracked = {layer.name for layer in self.norms.layers}
        missing = adapted - self._tracked
        if missing:
            raise ValueError(f"norms does not track {sorted(missing)[:3]}; make it with the same model and layers.")

    @classmethod
    def author2019(cls, model: nn.Module, lr: float, **options: Any) -> "CLARS":
        """Return CLARS with the step of its first author's code of 2019 (github.com/slowbull/largebatch).

            ratio_k = min(0.1, 0.01 * ||w_k|| / (S_k + 1e-6))
            b <- 0.9 * b + g + 2e-4 * w
            w <- w - lr * ratio_k * b

        for every matrix and kernel by itself, with S_k of groups of 8 examples; vectors, that is biases and
        normalisations, have the ratio 1. That code takes S_k from 64 batches of 8 other examples, one step earlier;
        here it is that of the step's own. Its rate falls to zero by a polynomial of power 2.

        Args:
            model: as for `CLARS`.
            lr: the global rate, with the trust coefficient 0.01: a tenth of what it would be with ours.
            options: of `CLARS`, in place of these; `overrides` come on top of its own. A matrix of zeros has the
                ratio 0 and stays one, as in that code; norm_floor=1e-3 lets it train.

        Raises:
            ValueError, UnsupportedLayerError: as for `CLARS`.
        """
        arguments = author2019(options)
        if not any(fits(layer, VECTORS) for layer in layers_of_model(model, arguments["layers"])):
            arguments["overrides"] = {key: value for key, value in arguments["overrides"].items() if key != VECTORS}
        return cls(model, lr, **arguments)

    def denominators(self, gradient_norms: Tensor, totals: Tensor) -> Tensor:
        # S >= ||g|| by the triangle inequality. Where a part of the gradient came by another way than the layers'
        # forward (a penalty in the loss), this holds the rate to that of LARS, and `layer_stats` warns.
        return torch.maximum(totals[:, 0], gradient_norms)

    def totals(self, like: Tensor) -> tuple[Tensor, set[str]]:
        totals = self.norms.totals(look=False)
        for name in self._adapted() - self._tracked:
            raise UserError(f"Layer {name!r} was made with adapt=False and is not tracked; make the optimizer anew.")
        none = like.new_zeros(4)
        return torch.stack([totals.get(layer.name, none).to(none) for layer in self.layers]), set(totals)

    def place(self, layout: Layout) -> None:
        super().place(layout)
        if layout.holders is not None:
            self.norms.held_by(layout.holders)

    def unmeasured(self) -> dict[str, str]:
        adapted = self._adapted() & self._tracked
        return {
            layer.prefix + local: layer.name
            for layer in self.layers
            if layer.name in adapted
            for local in layer.parameters.keys() - self.norms.measured(layer.name)
        }

    def remedy(self, refused: Sequence[str]) -> str:
        rate = self.defaults["lr"] * self.defaults["trust_coefficient"]
        others = [layer.name for layer in self.layers if layer.name not in refused]
        patterns = covering(refused, others)
        overrides = {pattern: {"adapt": False, "lr": float(f"{rate:.2g}")} for pattern in patterns}
        return (
            f"Leave out of the adaptation what has none, with overrides={overrides} (in a recipe: "
            "optimizer.overrides). Such a layer moves at a rate of its own, here lr * trust_coefficient; tune it as "
            "one of SGD."
        )

    def _adapted(self) -> set[str]:
        return {name for name, group in by_layer(self.param_groups).items() if group["adapt"]}

    @property
    def exact(self) -> bool:
        return self.norms.estimator.blocks == 1

    def forget(self) -> None:
        self.norms.reset()

    def cleared(self) -> None:
        norms = getattr(self, "norms", None)  # torch's constructor may call zero_grad before ours is done
        if norms is not None:
            norms.cleared()

    def scale(self, factor: float) -> None:
        self.norms.scale(factor)
