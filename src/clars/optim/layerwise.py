"""The step that CLARS, LARS and plain Nesterov share; they differ in the denominator of the layer's ratio."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UserError
from clars.layers import Layer, LayerUnit, layers, uncompiled
from clars.optim import unmeasured
from clars.optim.options import by_layer, check_saved, groups, layers_of, merged
from clars.optim.presence import Presence
from clars.optim.stats import LastStep, LayerStats, required
from clars.optim.unscaling import unscaled_by
from clars.optim.update import Momentum, update
from clars.optim.vectors import Constants, squares_by_layer
from clars.precision import wide
from clars.sharding.check import require_agreement, verify
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
        self.model = uncompiled(model)
        self._presence = Presence(self.model, self.layers)
        self._elements = {
            layer.prefix + local: whole_shape(parameter).numel()
            for layer in self.layers
            for local, parameter in layer.parameters.items()
        }
        self.known_layout: Layout | None = None
        self._measurements = 0  # so far, with the present layout
        self._stepped = False  # since gradients were cleared
        self._constants: tuple[Any, Constants] | None = None
        self._last: LastStep | None = None
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
        """Return the ratios' denominators [K] from ||g|| [K] and the examples' totals [K, 4], both of whole layers."""

    def totals(self, like: Tensor) -> tuple[Tensor, set[str]] | None:
        """Return the totals [K, 4] of this process's examples, and the layers of which there are any.

        They are in the unit of the gradients, and of the type and device of `like`. None if none are formed.
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
        self.known_layout, self._measurements, self._constants = layout, 0, None
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

        A closure that leaves no gradient has left the step out: Lightning's do, of a batch that is to be skipped.

        Raises:
            ValueError: no gradient is there, and no closure was given; the model's parameters were replaced, or sharded
                in a way that is not understood; a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.layout.steps_in_parts:
            self.layout.hand_over(self)
            return loss
        self._presence.require()
        if all(parameter.grad is None for parameter in self.layout.parameters.values()):
            if closure is not None:
                self.skip()
                return loss
            raise UserError("step() without gradients: call loss.backward() first.")
        shards = [shard for shard in self.layout.shards if shard.owner.grad is not None]
        if (factor := unscaled_by()) is not None:
            self.scale(factor)
        self.measure(shards)
        self.rate()
        self.apply(shards)
        self._stepped = True
        return loss

    def skip(self) -> None:
        """Note that a step was not taken: it has no statistics."""
        self._last = LastStep([], *[torch.zeros(0)] * 3, None)

    @property
    def exact(self) -> bool:
        """Whether the examples' totals are those of every example."""
        return True

    def forget(self) -> None:
        """Drop what was collected of gradients that are gone, wherever they were."""

    def cleared(self) -> None:
        """Drop what was collected of gradients that `zero_grad` has cleared."""

    def scale(self, factor: float) -> None:
        """Multiply what was collected by the factor by which the gradients were multiplied."""

    def remedy(self, refused: Sequence[str]) -> str:
        """Return what to do about layers that have no norms."""
        return ""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters."""
        parameters = chain(*(group["params"] for group in self.param_groups))
        if self._stepped is False and any(parameter.grad is not None for parameter in parameters):
            self.skip()  # a step that a GradScaler, or the loop, has left out
        self._stepped = False
        super().zero_grad(set_to_none)
        self.cleared()

    def measure(self, shards: list[Shard]) -> Tensor:
        """Form the norms of whole layers and the totals of the global batch; return the norm of all gradients.

        `shards` are those whose gradients are here; other processes do the same with theirs.
        """
        gradients = [self.layout.gradient(shard) for shard in shards]
        if any(gradient.is_sparse for gradient in gradients):
            raise UserError("A gradient is sparse; layer-wise rates need dense gradients (sparse=False).")
        weights = [shard.view(shard.owner) for shard in self.layout.shards]
        constants = self._vectors(shards)
        squares = [
            squares_by_layer(tensors, layer_of, constants.floor)
            for tensors, layer_of in zip((weights, gradients), constants.layer_of)
        ]
        partly = self._verify(shards, squares[1])
        totals, measured = self.totals(squares[0]) or (None, set())
        whole, totals = self.layout.whole(torch.stack(squares, 1), totals)
        if totals is not None:
            doubtful = self._in_doubt(shards, measured, partly)
            unmeasured.refuse(self.layers, doubtful, partly, whole[:, 1], totals[:, 2], self.remedy)
            totals = torch.where(whole[:, 1:] > 0, totals, 0.0)  # what belongs to gradients that were set to zero
        self._measured = (constants, *whole.sqrt().unbind(1), totals)
        return whole[:, 1].sum().sqrt()

    def _verify(self, shards: list[Shard], squares: Tensor) -> set[str]:
        """Check, with the first, second, fourth ... step, what is believed of all processes.

        Returns the layers of which a parameter has a gradient and was never measured in any process. `squares` are the
        squared norms [K] of this process's gradients.
        """
        self.layout.check()
        self._measurements += 1
        if self._measurements & (self._measurements - 1):
            return set()
        partly = verify(self.layout, self._elements, self.layout.reached_by(shards), self.unmeasured())
        require_agreement(self.layout, [layer.name for layer in self.layers], squares)
        return partly

    def _in_doubt(self, shards: list[Shard], measured: set[str], partly: set[str]) -> list[int]:
        """Return the layers with a gradient that has no norms in this process, or not of all of its parameters."""
        reached = {self._number[name] for name in self.layout.reached_by(shards)}
        group_of = by_layer(self.param_groups)
        names = {k: self.layers[k].name for k in sorted(reached)}
        return [k for k, name in names.items() if group_of[name]["adapt"] and (name not in measured or name in partly)]

    def rate(self, unscale_norms: Tensor | float = 1.0, unscale_gradients: Tensor | float = 1.0) -> None:
        """Form the ratios. The factors bring what was measured to the unit of the gradients that the step uses."""
        constants, weight_norms, gradient_norms, totals = self._measured
        gradient_norms = gradient_norms * unscale_gradients
        if totals is not None:
            sums, squares, *counts = totals.unbind(1)
            totals = torch.stack([sums * unscale_norms, squares * unscale_norms * unscale_norms, *counts], 1)
        assumed = torch.maximum(weight_norms, constants.floor)
        bottom = self.denominators(gradient_norms, totals) + constants.weight_decay * assumed + self.eps
        ratios = torch.where(constants.adapt, constants.trust * assumed / bottom, 1.0)
        active = {self._number[name] for name in self.layout.active()}
        self._last = LastStep(sorted(active), weight_norms, gradient_norms, ratios, totals)

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
        ratios = self._last.ratios.unbind()
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

        Reads them from the device; call it when they are wanted, not at every step. Empty where gradients were cleared
        without a step, as after one that a GradScaler skipped. After clipping, gradient_norm is of the clipped
        gradient, and variance_factor and noise_scale, which compare it with the examples' own norms, mean nothing.

        Raises:
            ValueError: no step was taken yet.

        Warns:
            UserWarning: a layer's S_k is below ||g_k||, so that a part of its gradient was not measured.
        """
        return required(self._last).by_layer([layer.name for layer in self.layers], self.exact)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state saved from an optimizer over the same layers in the same order.

        Raises:
            ValueError: the layers differ, or an option in the state is impossible.
        """
        check_saved(state_dict["param_groups"], self.param_groups)
        super().load_state_dict(state_dict)


_layers = layers  # the optimizers' argument has the name of the function


def _options(group: dict[str, Any]) -> tuple:
    return tuple(group[name] for name in ("lr", "momentum", "weight_decay", "nesterov"))
