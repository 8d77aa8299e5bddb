"""The step that CLARS, LARS and plain Nesterov share; they differ in the denominator of the layer's ratio."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UserError
from clars.layers import Layer, LayerUnit, layers
from clars.norms.product import wide
from clars.optim.options import check, groups
from clars.optim.stats import LayerStats
from clars.optim.update import Momentum, norms, pieces, update


@dataclass(frozen=True)
class _Constants:
    """Vectors over the active layers that change only when an option does."""

    layer_of: Tensor  # [pieces] index of the layer of each piece of a parameter
    floor: Tensor  # [K] smallest weight norm assumed
    weight_decay: Tensor  # [K]
    trust: Tensor  # [K]
    adapt: Tensor  # [K] bool


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Nesterov momentum with one rate per layer; see `CLARS` and `LARS` for the arguments.

    For layer k with weights w, gradient g, weight decay l and the scheduled rate lr:

        ratio_k = trust_coefficient * ||w|| / (denominator_k + l * ||w|| + eps)       (1 where adapt is False)
        b <- momentum * b + lr * ratio_k * (g + l * w)
        w <- w - (lr * ratio_k * (g + l * w) + momentum * b)                          (w - b without Nesterov)

    The rate is inside the buffer: a schedule never rescales past steps. A layer whose norm is below
    `norm_floor * sqrt(number of its weights)` gets the ratio of a layer with that norm, so that a layer initialised
    to zero trains, slowly at first, instead of standing still or taking the raw rate.
    """

    _step_supports_amp_scaling = True  # GradScaler then hands over its scale, which the norms need too

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
        *,
        eps: float = 1e-8,
        norm_floor: float = 1e-3,
    ) -> None:
        if eps < 0 or norm_floor < 0:
            raise ValueError(f"eps={eps!r} and norm_floor={norm_floor!r} must not be negative.")
        self.layers: list[Layer] = _layers(model, layers)
        if not self.layers:
            raise ValueError(f"{type(model).__name__} has no trainable parameter.")
        self.eps, self.norm_floor = eps, norm_floor
        self.grad_scaler: torch.amp.GradScaler | None = None
        self._constants: tuple[Any, _Constants] | None = None
        self._last: tuple[list[str], Tensor, Tensor, Tensor, Tensor | None] | None = None
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "nesterov": nesterov,
            "adapt": True,
        }
        super().__init__(groups(self.layers, defaults, overrides), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse groups that are no layer of the model.

        Raises:
            ValueError: always, for a group that a user adds.
        """
        if len(self.param_groups) == len(self.layers):
            raise UserError("The layers are those of the model; make the optimizer anew to train more of them.")
        super().add_param_group(param_group)

    def __getstate__(self):
        raise UserError(
            "A layer-wise optimizer belongs to its model and cannot be copied or pickled. Make one for the copied "
            "model, and load_state_dict() the state."
        )

    @abstractmethod
    def denominators(self, active: list[dict], gradient_norms: Tensor, unscale: Tensor | float) -> tuple[Tensor, Any]:
        """Return the ratios' denominators [K] of the active groups, and their example totals [K, 3] or None.

        `unscale` times a quantity in the backward pass's scale is that quantity in the gradient's.
        """

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step; return the closure's loss if one is given.

        Raises:
            ValueError: no gradient has arrived since the last step; the model's parameters were replaced; a gradient
                is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_parameters()
        active = [group for group in self.param_groups if any(p.grad is not None for p in group["params"])]
        if not active:
            raise UserError("step() without gradients: call loss.backward() first.")
        unscale = self._unscale(active)
        if unscale is None:
            self._last = ([], *[torch.zeros(0)] * 3, None)  # a skipped step has no statistics
        else:
            self._update(active, unscale)
        self.forget()
        return loss

    @property
    def exact(self) -> bool:
        """Whether the examples' totals are those of every example."""
        return True

    def forget(self) -> None:
        """Drop what was collected for the step that is over."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters."""
        super().zero_grad(set_to_none)
        self.forget()

    def _check_parameters(self) -> None:
        for layer in self.layers:
            for name, parameter in layer.parameters.items():
                if layer.module._parameters.get(name) is not parameter:
                    raise UserError(
                        f"Parameter {name!r} of layer {layer.name!r} was replaced or sharded after the optimizer was "
                        "made, so the step would train a tensor that the model no longer uses. Make the optimizer "
                        "after the change to the model."
                    )

    def _unscale(self, active: list[dict]) -> Tensor | float | None:
        """Bring the gradients to their own unit; return the factor for the norms, or None to skip the step.

        Only under a GradScaler is there anything to do; like GradScaler itself for any optimizer, this then asks the
        device whether a gradient overflowed.
        """
        found_inf = getattr(self, "found_inf", None)
        if found_inf is None:
            return 1.0
        if found_inf.item():
            return None
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            grads = [p.grad for group in active for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(grads, scale.reciprocal().to(grads[0].device))
            return scale.reciprocal()
        return self._scale_of_explicit_unscaling()

    def _scale_of_explicit_unscaling(self) -> float:
        """The gradients were unscaled by `scaler.unscale_(optimizer)`, which does not know of the norms."""
        if self.grad_scaler is None:
            raise UserError(
                "scaler.unscale_(optimizer) was called, and the scale it removed is not known to the optimizer. Tell "
                "it the scaler once: optimizer.grad_scaler = scaler."
            )
        return 1.0 / self.grad_scaler.get_scale()

    def _update(self, active: list[dict], unscale: Tensor | float) -> None:
        members = [[p for p in group["params"] if p.grad is not None] for group in active]
        parameters = [p for group in members for p in group]
        gradients = [p.grad for p in parameters]
        if any(gradient.is_sparse for gradient in gradients):
            raise UserError("A gradient is sparse; layer-wise rates need dense gradients (sparse=False).")
        constants = self._vectors(active, members)
        weight_norms = _layer_norms(parameters, parameters, constants)
        gradient_norms = _layer_norms(gradients, parameters, constants)
        denominators, totals = self.denominators(active, gradient_norms, unscale)
        norms = torch.maximum(weight_norms, constants.floor)
        ratios = constants.trust * norms / (denominators + constants.weight_decay * norms + self.eps)
        ratios = torch.where(constants.adapt, ratios, 1.0)
        self._last = ([group["layer"] for group in active], weight_norms, gradient_norms, ratios, totals)
        self._apply(active, members, ratios)

    def _vectors(self, active: list[dict], members: list[list[Tensor]]) -> _Constants:
        first = members[0][0]
        wanted = {wide(p.dtype) for own in members for p in own}
        like = {"dtype": torch.float64 if torch.float64 in wanted else torch.float32, "device": first.device}
        options = ("weight_decay", "trust_coefficient", "adapt")
        key = (
            like,
            [
                ([(id(p), len(pieces(p))) for p in own], *(group[name] for name in options))
                for group, own in zip(active, members)
            ],
        )
        if self._constants is None or self._constants[0] != key:
            sizes = torch.tensor([sum(p.numel() for p in own) for own in members], **like)
            constants = _Constants(
                layer_of=torch.tensor(
                    [k for k, own in enumerate(members) for p in own for _ in pieces(p)], device=first.device
                ),
                floor=self.norm_floor * sizes.sqrt(),
                weight_decay=torch.tensor([group["weight_decay"] for group in active], **like),
                trust=torch.tensor([group["trust_coefficient"] for group in active], **like),
                adapt=torch.tensor([group["adapt"] for group in active], device=first.device),
            )
            self._constants = (key, constants)
        return self._constants[1]

    def _apply(self, active: list[dict], members: list[list[Tensor]], ratios: Tensor) -> None:
        """Take the step for all layers that share their scalar options at once."""
        buckets: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
        for group, own, ratio in zip(active, members, ratios.unbind()):
            options = tuple(group[name] for name in ("lr", "momentum", "weight_decay", "nesterov"))
            buckets.setdefault(options, []).extend((parameter, ratio) for parameter in own)
        for (lr, momentum, weight_decay, nesterov), pairs in buckets.items():
            parameters = [parameter for parameter, _ in pairs]
            gradients = [parameter.grad for parameter in parameters]
            buffers = [self._buffer(parameter) if momentum else None for parameter in parameters]
            rates = (torch.stack([ratio for _, ratio in pairs]) * lr).unbind()
            update(parameters, gradients, buffers, rates, Momentum(momentum, weight_decay, nesterov))

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]

    def layer_stats(self) -> dict[str, LayerStats]:
        """Return the statistics of the last step by layer name, without the layers that had no gradient in it.

        Reads them from the device; call it when they are wanted, not at every step. Empty after a step that a
        GradScaler skipped. After clipping, gradient_norm is of the clipped gradient, and variance_factor and
        noise_scale, which compare it with the examples' own norms, mean nothing.

        Raises:
            ValueError: no step was taken yet.

        Warns:
            UserWarning: a layer's S_k is below ||g_k||, so that a part of its gradient was not measured.
        """
        if self._last is None:
            raise UserError("layer_stats() before the first step: there is nothing to tell yet.")
        names, *vectors, totals = self._last
        rows = zip(*(vector.tolist() for vector in vectors))
        per_example = totals.tolist() if totals is not None else [None] * len(names)
        stats = {name: LayerStats.of(*row, total) for name, row, total in zip(names, rows, per_example)}
        short = [name for name, row in stats.items() if row.unmeasured and self.exact]
        if short:
            warnings.warn(
                f"A part of the gradient of {', '.join(short[:3])} did not come through the layer's own forward (a "
                "penalty in the loss?), so its per-example norms are too small; the ratio is that of LARS there.",
                stacklevel=2,
            )
        return stats

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state saved from an optimizer over the same layers in the same order.

        Raises:
            ValueError: the layers differ, or an option in the state is impossible.
        """
        saved = [group.get("layer") for group in state_dict["param_groups"]]
        own = [group["layer"] for group in self.param_groups]
        if saved != own:
            missing = sorted(set(own) - set(filter(None, saved)))[:3]
            raise UserError(f"The state is of other layers ({len(saved)} against {len(own)} here, without {missing}).")
        options = ("lr", "momentum", "weight_decay", "trust_coefficient", "nesterov", "adapt")
        for group in state_dict["param_groups"]:
            check({name: group[name] for name in options}, f"state of layer {group['layer']!r}")
        super().load_state_dict(state_dict)


_layers = layers  # the optimizers' argument has the name of the function


def _layer_norms(tensors: list[Tensor], like: list[Tensor], constants: _Constants) -> Tensor:
    """Return the joint 2-norm [K] of each layer's tensors, accumulated in float32 at least.

    Piece by piece, which is also the more accurate: one long sum in float32 would lose two digits.
    """
    cut = [piece for tensor, other in zip(tensors, like) for piece in _pieces_as(tensor, other)]
    found = norms(cut, constants.floor.dtype)
    return torch.zeros_like(constants.floor).index_add_(0, constants.layer_of, found.square()).sqrt()


def _pieces_as(tensor: Tensor, parameter: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor into as many pieces as its parameter; a gradient may lie in memory otherwise than its parameter."""
    expected = pieces(parameter)
    return pieces(tensor.contiguous()) if len(expected) > 1 else (tensor,)
