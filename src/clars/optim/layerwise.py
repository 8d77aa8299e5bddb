"""What the layer-wise optimizers share: the layers, the course of a step, and what is told of it."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from clars.errors import UserError
from clars.layers import Layer, LayerUnit, layers, uncompiled
from clars.optim.callers import makes_state, unscaled_by
from clars.optim.live import Live
from clars.optim.measurement import Measured, Measurement
from clars.optim.options import check_saved, completed, groups, layers_of, merged, values
from clars.optim.presence import Presence
from clars.optim.stats import LastStep, LayerStats, required
from clars.sharding.find import find
from clars.sharding.layout import Layout, Shard, whole_shape


class LayerwiseOptimizer(torch.optim.Optimizer):
    """One rate per layer, formed from norms of whole layers, wherever their elements are.

    A step measures, forms the ratios, and updates. `MomentumOptimizer` (CLARS, LARS) and `LAMB` say how, by `ratios`
    and `update`, and by the names of what they keep.
    """

    counters: tuple[str, ...] = ()
    """What parameter groups hold beside the options: numbers of steps."""

    buffers: tuple[str, ...]
    """The tensors that the state may hold of a parameter, of its shape."""

    of_ratio: tuple[str, ...] = ("adapt",)
    """The options that ratios depend on."""

    of_update: tuple[str, ...]
    """The options that an update depends on, and that one of many tensors has in common."""

    def __init__(
        self,
        model: nn.Module,
        defaults: Mapping[str, Any],
        layers: LayerUnit,
        overrides: Mapping[str, Mapping[str, Any]] | None,
        eps: float,
    ) -> None:
        if eps < 0:
            raise ValueError(f"eps={eps!r} must not be negative.")
        self.layers: list[Layer] = _layers(model, layers)
        if not self.layers:
            raise ValueError(f"{type(model).__name__} has no trainable parameter.")
        self.eps = eps
        self.model = uncompiled(model)
        self.options = tuple(defaults)
        self.elements = {
            layer.prefix + local: whole_shape(parameter).numel()
            for layer in self.layers
            for local, parameter in layer.parameters.items()
        }
        self.known_layout: Layout | None = None
        self.live: Live | None = None  # while a step is captured that is to be repeated with other rates
        self._presence = Presence(self.model, self.layers)
        self._stepped = False  # since gradients were cleared
        self._last: LastStep | None = None
        counted = dict.fromkeys(self.counters, 0)
        super().__init__([group | counted for group in groups(self.layers, defaults, overrides)], dict(defaults))

    @abstractmethod
    def ratios(self, measured: Measured) -> Tensor:
        """Return the ratios [K] of layers that are adapted."""

    @abstractmethod
    def update(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        buffers: list[list[Tensor]],
        rates: Sequence[Tensor],
        group: Mapping[str, Any],
    ) -> None:
        """Change weights and buffers of tensors with the same options, those of `group`.

        `buffers` are a list for each name of `kept(group)`; `rates` are lr * ratio, a scalar for each tensor.
        """

    def kept(self, group: Mapping[str, Any]) -> Sequence[str]:
        """Return which of `buffers` are needed with the options of `group`."""
        return self.buffers

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
        self.param_groups = merged(self.param_groups)

    def __getstate__(self):
        raise UserError(
            "A layer-wise optimizer belongs to its model and cannot be copied or pickled. Make one for the copied "
            "model, and load_state_dict() the state."
        )

    def totals(self, like: Tensor) -> tuple[Tensor, set[str]] | None:
        """Return the totals [K, 4] of this process's examples, and the layers of which there are any.

        They are in the unit of the gradients, and of the type and device of `like`. None if none are formed.
        """
        return None

    def unmeasured(self) -> dict[str, str]:
        """Return the parameters of adapted layers that were never measured in this process, and their layers."""
        return {}

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

    @property
    def layout(self) -> Layout:
        """Where the layers' elements are; looked up at the first step, unless `clars.bind` has told."""
        if self.known_layout is None:
            self.place(find(self))
        return self.known_layout

    def place(self, layout: Layout) -> None:
        """Take the elements to be where `layout` says."""
        self.known_layout, self._measurement = layout, Measurement(self, layout)

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return what are the layers' parameters now, by their names in the model."""
        return [
            (layer.prefix + local, layer.module._parameters[local])
            for layer in self.layers
            for local in layer.parameters
        ]

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
        if (factor := unscaled_by()) is not None:
            self.scale(factor)
        shards = [shard for shard in self.layout.shards if shard.owner.grad is not None]
        self.measure(shards)
        self.rate()
        self.apply(shards)
        if not (self.counters and makes_state()):
            self.count()
        self._stepped = True
        return loss

    def kept_of_step(self) -> tuple[LastStep | None, bool]:
        """Return what Python keeps of the last step; see `put_step`."""
        return self._last, self._stepped

    def put_step(self, kept: tuple[LastStep | None, bool]) -> None:
        """Take the last step to be the one of which `kept_of_step` told: it was repeated, and Python did not run."""
        self._last, self._stepped = kept
        if self.counters:
            self.count()

    def skip(self) -> None:
        """Note that a step was not taken: it has no statistics."""
        self._last = LastStep([], *[torch.zeros(0)] * 3, None)

    def count(self) -> None:
        """Note that a step was taken."""
        for group in self.param_groups:
            group |= {name: group[name] + 1 for name in self.counters}

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
        self._measured = self._measurement(shards)
        return self._measured.norm

    def rate(self, unscale_norms: Tensor | float = 1.0, unscale_gradients: Tensor | float = 1.0) -> None:
        """Form the ratios. The factors bring what was measured to the unit of the gradients that the step uses."""
        measured = self._measured.unscaled(unscale_norms, unscale_gradients)
        ratios = torch.where(measured.constants.options["adapt"], self.ratios(measured), 1.0)
        active = {self._measurement.number[name] for name in self.layout.active()}
        norms = measured.weight_norms, measured.gradient_norms
        self._last = LastStep(sorted(active), *norms, ratios, measured.totals)

    def apply(self, shards: list[Shard]) -> None:
        """Take the step for `shards`, for all that share the options of an update at once."""
        ratios = self._last.ratios
        if self.live is not None:
            ratios = ratios * self.live["lr"].to(ratios.dtype)
        each = ratios.unbind()
        for group, own in self.alike(shards):
            rates = torch.stack([each[self._measurement.number[shard.name]] for shard in own])
            rates = rates if self.live is not None else rates * group["lr"]
            self.update(*self.tensors(own, group), rates.unbind(), group)

    def alike(self, shards: Iterable[Shard]) -> list[tuple[Mapping[str, Any], list[Shard]]]:
        """Return the shards that share the options of an update, with a group that has these."""
        names = [name for name in self.of_update if self.live is None or name != "lr"]
        options_of = {}
        for group in self.param_groups:
            options_of |= dict.fromkeys(layers_of(group), (group, values(group, names)))
        found: dict[tuple, tuple[Mapping[str, Any], list[Shard]]] = {}
        for shard in shards:
            group, options = options_of[self.layers[self._measurement.number[shard.name]].name]
            found.setdefault(options, (group, []))[1].append(shard)
        return [(self._with_counters(group, own), own) for group, own in found.values()]

    def _with_counters(self, group: Mapping[str, Any], shards: Sequence[Shard]) -> Mapping[str, Any]:
        """Return a group with its counters as they are on the device, where a step is to be repeated."""
        if self.live is None or not self.counters:
            return group
        k = self._measurement.number[shards[0].name]
        return {**group, **{name: self.live[name][k] for name in self.counters}}

    def tensors(self, shards: Sequence[Shard], group: Mapping[str, Any]) -> tuple[list, list, list[list[Tensor]]]:
        """Return weights and gradients of shards, and their buffers by name."""
        weights = [shard.view(shard.owner) for shard in shards]
        gradients = [self.layout.gradient(shard) for shard in shards]
        buffers = [[shard.view(self.buffer(shard.owner, name)) for shard in shards] for name in self.kept(group)]
        return weights, gradients, buffers

    def buffer(self, owner: Tensor, name: str) -> Tensor:
        """Return a tensor of the state of an owner of shards, made of zeros where there is none yet."""
        state = self.state[owner]
        if name not in state:
            state[name] = torch.zeros_like(owner)
        return state[name]

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

        Options that the version which saved it did not have get the value that changes nothing.

        Raises:
            ValueError: the layers differ, or an option in the state is impossible.
        """
        saved = completed(state_dict["param_groups"], self.options)
        check_saved(saved, self.param_groups, (*self.options, *self.counters))
        super().load_state_dict(state_dict | {"param_groups": saved})


_layers = layers  # the optimizers' argument has the name of the function
