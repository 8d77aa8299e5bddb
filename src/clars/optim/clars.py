"""CLARS: layer-wise rates from the mean of the per-example gradient norms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import LayerUnit
from clars.norms import ExampleNorms
from clars.optim.layerwise import LayerwiseOptimizer
from clars.optim.options import by_layer
from clars.sharding.check import refuse_unmeasured
from clars.sharding.layout import Layout, Shard


class CLARS(LayerwiseOptimizer):
    """Complete Layer-wise Adaptive Rate Scaling (Huo, Gu, Huang 2020, arXiv 2002.01576).

        ratio_k = trust_coefficient * ||w_k|| / (S_k + weight_decay * ||w_k|| + eps)

    with S_k the sum over examples of the norm of their contribution to the gradient of layer k: for an averaged loss,
    the mean of the per-example gradient norms (see `ExampleNorms`). The update is stated at `LayerwiseOptimizer`.

    An ordinary torch optimizer with one parameter group per layer, in which "layer" is its name. It takes the model
    because S_k is formed in the model's backward pass. With several processes it assumes that gradients are averaged
    over all of them, as DistributedDataParallel does, and averages S_k alike, by one all-reduce per step.

    S_k is that of the gradient as the backward pass forms it: what is done to `.grad` afterwards, such as clipping,
    changes the step and not the ratio.

    Args:
        model: the parameters that are trainable now are optimised; those unfrozen later are not. Dimension 0 of its
            input is the batch.
        lr: the global rate; layer k moves with lr * ratio_k.
        momentum, nesterov: as in torch.optim.SGD; without Nesterov, heavy-ball momentum.
        weight_decay: added to the gradient and part of the ratio's denominator.
        trust_coefficient: eta.
        layers: "module" (weight and bias of a module are one layer) or "parameter"; see `clars.layers`.
        overrides: options per layer-name pattern (fnmatch), e.g. {"*.bn*": {"weight_decay": 0.0, "adapt": False}}; the
            pattern "@1d" stands for the layers that hold only vectors, such as all normalisations.
            Options: lr, momentum, weight_decay, trust_coefficient, nesterov, adapt. Layers with adapt=False have the
            ratio 1 and are not tracked.
        norms: an `ExampleNorms` of the same layers, made before; by default one is made.
        estimator, fraction: of the `ExampleNorms` that is made: "exact", or "subset" with the share of the batch to
            measure.
        eps: added to the denominator, in the gradient's unit.
        norm_floor: smallest root-mean-square weight assumed of a layer; see `LayerwiseOptimizer`.

    Raises:
        ValueError: an impossible value, an unknown option, a pattern that matches nothing.
        UnsupportedLayerError: a layer for which no exact norm is known; at `step()`, a layer that has a gradient but
            no norms, because its parameters were used outside of its own forward.
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
        fraction: float | None = None,
        eps: float = 1e-8,
        norm_floor: float = 1e-3,
    ) -> None:
        if norms is not None and (estimator != "exact" or fraction is not None):
            raise ValueError("estimator and fraction belong to the ExampleNorms given as norms; set them there.")
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
        )
        adapted = self._adapted()
        tracked = [layer for layer in self.layers if layer.name in adapted]
        self.norms = norms if norms is not None else ExampleNorms(model, estimator, layers=tracked, fraction=fraction)
        self._tracked = {layer.name for layer in self.norms.layers}
        missing = adapted - self._tracked
        if missing:
            raise ValueError(f"norms does not track {sorted(missing)[:3]}; make it with the same model and layers.")

    def denominators(self, gradient_norms: Tensor, totals: Tensor) -> Tensor:
        # S >= ||g|| by the triangle inequality. Where a part of the gradient came by another way than the layers'
        # forward (a penalty in the loss), this holds the rate to that of LARS, and `layer_stats` warns.
        return torch.maximum(totals[:, 0], gradient_norms)

    def totals(self, shards: list[Shard], like: Tensor) -> Tensor:
        totals = self.norms.totals()
        adapted = self._adapted()
        for name in adapted - self._tracked:
            raise UserError(f"Layer {name!r} was made with adapt=False and is not tracked; make the optimizer anew.")
        names = self.layout.reached_by(shards)
        reached = {
            layer.name for layer in self.layers if any(layer.prefix + local in names for local in layer.parameters)
        }
        reached &= adapted
        if self.layout.world == 1:  # else another process may have measured what this one has only the gradient of
            refuse_unmeasured(names, self.unmeasured())
        if (self.norms.estimator.compiled or self.layout.tells_own_gradients) and reached - totals.keys():
            raise UnsupportedLayerError(
                "has a gradient in this step but no per-example norms. A compiled model does not measure layers "
                "under activation checkpointing; and another function may have taken the place of torch's own.",
                min(reached - totals.keys()),
            )
        if reached and not totals:
            raise UserError("step() without a backward pass since the last step: no per-example norms have arrived.")
        none = like.new_zeros(3)
        return torch.stack([totals.get(layer.name, none).to(none) for layer in self.layers])

    def place(self, layout: Layout) -> None:
        super().place(layout)
        if layout.sharded:
            self.norms.keep_until_reset()

    def unmeasured(self) -> dict[str, str]:
        adapted = self._adapted() & self._tracked
        return {
            layer.prefix + local: layer.name
            for layer in self.layers
            if layer.name in adapted
            for local in layer.parameters.keys() - self.norms.measured(layer.name)
        }

    def _adapted(self) -> set[str]:
        return {name for name, group in by_layer(self.param_groups).items() if group["adapt"]}

    @property
    def exact(self) -> bool:
        return self.norms.estimator.blocks == 1

    def forget(self) -> None:
        norms = getattr(self, "norms", None)  # torch's constructor may call zero_grad before ours is done
        if norms is not None:
            norms.reset()
