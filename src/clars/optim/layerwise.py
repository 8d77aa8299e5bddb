"""The step that CLARS, LARS and plain Nesterov share; they differ in the denominator of the layer's ratio."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UserError
from clars.layers import Layer, LayerUnit, layers
from clars.norms.product import wide
from clars.optim.options import by_layer, check, groups, layers_of, merged
from clars.optim.scaling import unscaled
from clars.optim.stats import LayerStats
from clars.optim.update import Momentum, update
from clars.optim.vectors import Constants, squares_by_layer
from clars.sharding.check import refuse_unmeasured, verify
from clars.sharding.find import find
from clars.sharding.layout import Layout, Shard, whole_shape


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
        self.model = model
        self._elements = {
            layer.prefix + local: whole_shape(parameter).numel()
            for layer in self.layers
            for local, parameter in layer.parameters.items()
        }
        self.known_layout: Layout | None = None
        self.verified = False
        self._awaited: set[str] = set()  # layers that no process has measured so far
        self._constants: tuple[Any, Constants] | None = None
        self._last: tuple[list[int], Tensor, Tensor, Tensor, Tensor | None] | None = None
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
        if sum(len(layers_of(group)) for group in self.param_groups) == len(self.layers):
            raise UserError("The layers are those of the model; make the optimizer anew to train more of them.")
        super().add_param_group(param_group)

    def merge_groups(self) -> None:
        """Join the parameter groups whose options are the same; the steps stay what they are.

        One group per layer costs time under DeepSpeed, which handles group by group. Call it before
        `deepspeed.initialize`. The names of a group's layers are then its "layers". Options that change later, such
        as a schedule's rate, are those of the group.
        """
        self.param_groups, self._constants = merged(self.param_groups), None

    def __getstate__(self):
        raise UserError(
            "A layer-wise optimizer belongs to its model and cannot be copied or pickled. Make one for the copied "
            "model, and load_state_dict() the state."
        )

    @abstractmethod
    def denominators(self, gradient_norms: Tensor, totals: Tensor | None) -> Tensor:
        """Return the ratios' denominators [K] from ||g|| [K] and the examples' totals [K, 3], both of whole layers."""

    def totals(self, shards: list[Shard], like: Tensor) -> Tensor | None:
        """Return the totals [K, 3] of this process's examples, in the backward pass's scale; None if none are formed.

        `shards` have a gradient in this step; `like` has the type and device wanted.
        """
        return None

    def unmeasured(self) -> dict[str, str]:
        """Return the parameters of adapted layers that were never measured in this process, and their layers."""
        return {}

    @property
    def layout(self) -> Layout:
        """Where the layers' elements are; looked up at the first step, unless `clars.bind` has told."""
        if self.known_layout is None:
            self.place(find(self))
        return self.known_layout

    def place(self, layout: Layout) -> None:
        """Take the elements to be where `layout` says."""
        self.known_layout, self.verified, self._constants = layout, False, None
        self._number = {layer.prefix + local: k for k, layer in enumerate(self.layers) for local in layer.parameters}

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return what are the layers' parameters now, by their names in the model."""
        return [
            (layer.prefix + local, layer.module._parameters[local])
            for layer in self.layers
            for local in layer.parameters
        ]

    def layer_of(self, shard: Shard) -> Layer:
        """Return the layer to which the elements belong."""
        return self.layers[self._number[shard.name]]

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step; return the closure's loss if one is given.

        Raises:
            ValueError: no gradient has arrived since the last step; the model's parameters were replaced, or sharded
                in a way that is not understood; a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.layout.steps_in_parts:
            self.layout.hand_over(self)
            return loss
        self._check_parameters()
        if all(parameter.grad is None for parameter in self.layout.parameters.values()):
            raise UserError("step() without gradients: call loss.backward() first.")
        shards = [shard for shard in self.layout.shards if shard.owner.grad is not None]
        unscale = unscaled(self, [self.layout.gradient(shard) for shard in shards])
        if unscale is None:
            self.skip()
        else:
            self.measure(shards)
            self.rate(unscale)
            self.apply(shards)
        self.forget()
        return loss

    def skip(self) -> None:
        """Note that a step was not taken: it has no statistics."""
        self._last = ([], *[torch.zeros(0)] * 3, None)

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

    def measure(self, shards: list[Shard]) -> Tensor:
        """Form the norms of whole layers and the totals of the global batch; return the norm of all gradients.

        `shards` are those whose gradients are here; other processes do the same with theirs.
        """
        gradients = [self.layout.gradient(shard) for shard in shards]
        if any(gradient.is_sparse for gradient in gradients):
            raise UserError("A gradient is sparse; layer-wise rates need dense gradients (sparse=False).")
        if not self.verified:
            reached = self.layout.reached_by(shards)
            self._awaited = verify(self.layout, self._elements, reached, self.unmeasured())
            self.verified = True
        weights = [shard.view(shard.owner) for shard in self.layout.shards]
        constants = self._vectors(shards)
        squares = [
            squares_by_layer(tensors, layer_of, constants.floor)
            for tensors, layer_of in zip((weights, gradients), constants.layer_of)
        ]
        whole, totals = self.layout.whole(torch.stack(squares, 1), self.totals(shards, squares[0]))
        if self._awaited and self.layout.world > 1:  # with one process, totals() has asked
            self._look_for_awaited(whole[:, 1], totals[:, 2])
        self._measured = (constants, *whole.sqrt().unbind(1), totals)
        return whole[:, 1].sum().sqrt()

    def _look_for_awaited(self, squares: Tensor, examples: Tensor) -> None:
        """Refuse a layer that has its first gradient in this step, and no norms of any process's examples.

        It is asked of sums that all processes share, so that all refuse. The device is waited for only as long as there
        is a layer that never had a gradient.
        """
        group_of = by_layer(self.param_groups)
        for layer, square, count in zip(self.layers, squares.tolist(), examples.tolist()):
            if layer.name in self._awaited and count:
                self._awaited.remove(layer.name)
            elif layer.name in self._awaited and square and group_of[layer.name]["adapt"]:
                names = [layer.prefix + local for local in layer.parameters]
                refuse_unmeasured(names, dict.fromkeys(names, layer.name))

    def rate(self, unscale_norms: Tensor | float, unscale_gradients: Tensor | float = 1.0) -> None:
        """Form the ratios. The factors bring what was measured to the unit of the gradients that the step uses."""
        constants, weight_norms, gradient_norms, totals = self._measured
        gradient_norms = gradient_norms * unscale_gradients
        if totals is not None:
            sums, squares, examples = totals.unbind(1)
            totals = torch.stack([sums * unscale_norms, squares * unscale_norms * unscale_norms, examples], 1)
        assumed = torch.maximum(weight_norms, constants.floor)
        bottom = self.denominators(gradient_norms, totals) + constants.weight_decay * assumed + self.eps
        ratios = torch.where(constants.adapt, constants.trust * assumed / bottom, 1.0)
        active = {self._number[name] for name in self.layout.active()}
        self._last = (sorted(active), weight_norms, gradient_norms, ratios, totals)

    def _vectors(self, shards: list[Shard]) -> Constants:
        every = self.layout.shards
        device = every[0].owner.device if every else self.layout.device
        precise = torch.float64 in {wide(parameter.dtype) for parameter in self.layout.parameters.values()}
        dtype = torch.float64 if precise else torch.float32
        options = [(group["weight_decay"], group["trust_coefficient"], group["adapt"]) for group in self.param_groups]
        key = (dtype, device, options, [shard.name for shard in shards])
        if self._constants is None or self._constants[0] != key:
            self._constants = (key, self._new_vectors(dtype, device, shards))
        return self._constants[1]

    def _new_vectors(self, dtype: torch.dtype, device: torch.device, shards: list[Shard]) -> Constants:
        own = [by_layer(self.param_groups)[layer.name] for layer in self.layers]
        options = [(group["weight_decay"], group["trust_coefficient"], group["adapt"]) for group in own]
        indices = [[self._number[shard.name] for shard in each] for each in (self.layout.shards, shards)]
        sizes = [sum(self._elements[layer.prefix + local] for local in layer.parameters) for layer in self.layers]
        return Constants.of(dtype, device, indices, options, sizes, self.norm_floor)

    def apply(self, shards: list[Shard]) -> None:
        """Take the step for `shards`, for all that share their scalar options at once."""
        ratios = self._last[3].unbind()
        options_of = {name: _options(group) for name, group in by_layer(self.param_groups).items()}
        buckets: dict[tuple, list[Shard]] = {}
        for shard in shards:
            buckets.setdefault(options_of[self.layer_of(shard).name], []).append(shard)
        for (lr, momentum, weight_decay, nesterov), own in buckets.items():
            weights = [shard.view(shard.owner) for shard in own]
            gradients = [self.layout.gradient(shard) for shard in own]
            buffers = [shard.view(self.buffer(shard.owner)) if momentum else None for shard in own]
            rates = (torch.stack([ratios[self._number[shard.name]] for shard in own]) * lr).unbind()
            update(weights, gradients, buffers, rates, Momentum(momentum, weight_decay, nesterov))

    def buffer(self, owner: Tensor) -> Tensor:
        """Return the momentum of an owner of shards, made of zeros where there is none yet."""
        state = self.state[owner]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(owner)
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
        active, *vectors, totals = self._last
        rows = list(zip(*(vector.tolist() for vector in vectors)))
        per_example = totals.tolist() if totals is not None else [None] * len(self.layers)
        stats = {self.layers[k].name: LayerStats.of(*rows[k], per_example[k]) for k in active}
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
        saved, own = ([_names(group) for group in groups] for groups in (state_dict["param_groups"], self.param_groups))
        if saved != own:
            missing = sorted(set(chain(*own)) - set(chain(*saved)))[:3]
            raise UserError(
                f"The state is of other layers ({len(saved)} groups against {len(own)} here, without {missing})."
            )
        options = ("lr", "momentum", "weight_decay", "trust_coefficient", "nesterov", "adapt")
        for group in state_dict["param_groups"]:
            check({name: group[name] for name in options}, f"state of layer {_names(group)[0]!r}")
        super().load_state_dict(state_dict)


_layers = layers  # the optimizers' argument has the name of the function


def _names(group: dict[str, Any]) -> list[str]:
    """Return the names of the layers of a saved group, if it has such."""
    return layers_of(group) if "layers" in group or "layer" in group else []


def _options(group: dict[str, Any]) -> tuple:
    return tuple(group[name] for name in ("lr", "momentum", "weight_decay", "nesterov"))
