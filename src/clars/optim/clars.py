"""CLARS: layer-wise rates from the mean of the per-example gradient norms."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import LayerUnit
from clars.norms import ExampleNorms
from clars.optim.layerwise import LayerwiseOptimizer
from clars.sharding.replicas import average, replicas


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
        overrides: options per layer-name pattern (fnmatch), e.g. {"*.bn*": {"weight_decay": 0.0, "adapt": False}}.
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
        adapted = {group["layer"] for group in self.param_groups if group["adapt"]}
        tracked = [layer for layer in self.layers if layer.name in adapted]
        self.norms = norms if norms is not None else ExampleNorms(model, estimator, layers=tracked, fraction=fraction)
        self._tracked = {layer.name for layer in self.norms.layers}
        missing = adapted - self._tracked
        if missing:
            raise ValueError(f"norms does not track {sorted(missing)[:3]}; make it with the same model and layers.")

    def denominators(self, active: list[dict], gradient_norms: Tensor, unscale) -> tuple[Tensor, Tensor]:
        totals = self.norms.totals()
        if not totals and any(group["adapt"] for group in active):
            raise UserError("step() without a backward pass since the last step: no per-example norms have arrived.")
        if self.norms.estimator.compiled:
            self._refuse_missing(active, totals)
        if replicas() == 1:  # else another process may have measured what this one has only the gradient of
            self._refuse_unmeasured(active)
        none = gradient_norms.new_zeros(3)
        rows = average([totals.get(layer.name, none).to(none.dtype) for layer in self.layers])
        row_of = dict(zip((layer.name for layer in self.layers), rows.unbind()))
        rows = torch.stack([row_of[group["layer"]] for group in active])
        sums = rows[:, 0] * unscale
        # S >= ||g|| by the triangle inequality. Where a part of the gradient came by another way than the layers'
        # forward (a penalty in the loss), this holds the rate to that of LARS, and `layer_stats` warns.
        bottom = torch.maximum(sums, gradient_norms)
        return bottom, torch.stack([sums, rows[:, 1] * unscale * unscale, rows[:, 2]], 1)

    def _refuse_unmeasured(self, active: list[dict]) -> None:
        """Refuse a parameter that has a gradient but was never measured: it came there by another way."""
        own = {layer.name: layer.parameters for layer in self.layers}
        for group in active:
            name = group["layer"]
            if not group["adapt"]:
                continue
            if name not in self._tracked:
                raise UserError(
                    f"Layer {name!r} was made with adapt=False and is not tracked; make the optimizer anew."
                )
            measured = self.norms.measured(name)
            for local, parameter in own[name].items():
                if parameter.grad is not None and local not in measured:
                    raise UnsupportedLayerError(
                        f"has a gradient for {local!r} but no per-example norms: the parameter was used outside of its "
                        "module's own forward, as torch.nn.MultiheadAttention does with out_proj.",
                        name,
                    )

    def _refuse_missing(self, active: list[dict], totals: dict[str, Tensor]) -> None:
        """Refuse a layer of a compiled model that has a gradient in this step and no norms."""
        for group in active:
            if group["adapt"] and group["layer"] in self._tracked and group["layer"] not in totals:
                raise UnsupportedLayerError(
                    "has a gradient in this step but no per-example norms. A compiled model does not measure layers "
                    "under activation checkpointing.",
                    group["layer"],
                )

    @property
    def exact(self) -> bool:
        return self.norms.estimator.blocks == 1

    def forget(self) -> None:
        norms = getattr(self, "norms", None)  # torch's constructor may call zero_grad before ours is done
        if norms is not None:
            norms.reset()
