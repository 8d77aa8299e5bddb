"""Which exact method forms the per-example norms of a weight: the cheapest, by an estimate or by the clock."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from clars import native
from clars.native import where
from clars.norms.methods import METHODS
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.planned import ProductPlan, planned
from clars.norms.methods.sizes import Sizes
from clars.norms.methods.timings import TIMINGS, Timings

Report = Callable[[str, Sizes, Operands, Method], None]
WORTH_TIMING = 6.0  # times the estimate of the cheapest method on accelerators, whose estimates are that coarse
MOST_LAYERS = 10_000  # that are remembered: to plan one at every call would take longer than a small product


class Cut(NamedTuple):
    """How a batch is cut: into blocks, one of which is measured, or into groups of so many examples."""

    blocks: int = 1
    group: int = 1


class Chooser:
    """Chooses a method for each call of a tracker's layers, and remembers what it has found out.

    Args:
        memory: bytes that one piece of work may take beside the gradient itself; None is the device's default.
        timed: whether methods are timed, once per sizes, instead of estimated; None: on accelerators alone.
        timings: what was timed so far; by default that of the process.

    Attributes:
        report: called, where somebody wants to know, with the name of a layer, the sizes and tensors of its call, and
            the method chosen.
    """

    def __init__(self, memory: int | None = None, timed: bool | None = None, timings: Timings = TIMINGS) -> None:
        self.memory, self._timed, self._timings = memory, timed, timings
        self.report: Report | None = None
        self._layers: dict[tuple, native.NativeLayer | None] = {}

    def choose(self, sizes: Sizes, operands: Operands, layer: str = "") -> Method:
        """Return the cheapest method for a call of the layer of that name."""
        allowed = self.allowed(sizes)
        method = cheapest(sizes, allowed)
        if sizes.accelerated:
            most = WORTH_TIMING * method.operations(sizes)
            allowed = [each for each in allowed if each.operations(sizes) <= most]
        if len(allowed) > 1 and self.times(sizes.device):
            seconds = self.seconds(sizes, operands, allowed)
            method = min(allowed, key=lambda each: seconds[each.name]) if seconds else method
        if self.report is not None:
            self.report(layer, sizes, operands, method)
        return method

    def allowed(self, sizes: Sizes) -> list[Method]:
        """Return the methods that need at most `memory` bytes for an example; where none does, that with least."""
        found = applying(sizes)
        within = [method for method in found if self.memory is None or method.bytes(sizes) <= self.memory]
        return within or [min(found, key=lambda method: method.bytes(sizes))]

    def is_settled(self, sizes: Sizes) -> bool:
        """Tell whether another call of such sizes would have the same method: it was timed now, or never is."""
        return not self.times(sizes.device) or where.can_be_timed(sizes.device)

    def times(self, device: str) -> bool:
        """Tell whether methods are timed on a device."""
        return not where.on_processor(device) if self._timed is None else self._timed

    def seconds(self, sizes: Sizes, operands: Operands, among: Sequence[Method]) -> dict[str, float]:
        """Return the seconds that each method takes, weight gradient included; empty where nothing can be timed now."""
        works = {method.name: partial(self._whole, method.form, operands, sizes) for method in among}
        return self._timings.seconds((sizes, self.memory, *works), sizes.device, works)

    def _whole(self, form: Callable, operands: Operands, sizes: Sizes) -> None:
        if form(operands, sizes, self.memory).gradient is None:
            operands.gradient()

    def accelerated_layer(
        self, kind: str, arguments: tuple, x: torch.Tensor, weight: torch.Tensor, operands_of: Callable, cut: Cut
    ) -> native.NativeLayer | None:
        """Return the layer in C++ whose backward pass asks Python once, for calls like this one; made once.

        None where there are no layers in C++, or somebody watches the choices.

        Args:
            kind, arguments, x, weight, cut: as for `native_layer`; x and weight as they are before autocast.
            operands_of: from (gy, x, weight) to the operands of a call.
        """
        if self.report is not None or not native.loaded():
            return None
        alike = (x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.dtype, where.autocast_dtype(x))
        key = (kind, arguments, *alike, cut)
        if key not in self._layers:
            if len(self._layers) >= MOST_LAYERS:
                self._layers.clear()
            plan = ProductPlan(operands_of, self, cut.group)
            self._layers[key] = planned(kind, plan, x, weight, cut.group, arguments)
        return self._layers[key]

    def native_layer(
        self, kind: str, arguments: tuple, x: torch.Tensor, weight: torch.Tensor, foresee: Callable, cut: Cut
    ) -> native.NativeLayer | None:
        """Return the layer in C++ that does forward and backward of calls like this one, made once.

        None where other means are needed, or somebody watches the choices.

        Args:
            kind: of layer, such as "Conv".
            arguments: the hyper-parameters with which it is made.
            x, weight: of the call.
            foresee: called as `foresee(x, weight)`, returns the sizes of a call that has not been made yet.
            cut: how the batch is cut.
        """
        if self.report is not None or self.times(x.device.type) or not native.applies(x, weight):
            return None
        key = (kind, arguments, x.shape, x.stride(), weight.shape, where.threads(), cut)
        if key not in self._layers:
            if len(self._layers) >= MOST_LAYERS:
                self._layers.clear()
            with torch.no_grad():  # else activation checkpointing would count what this saves among what is saved
                sizes = replace(foresee(x, weight), blocks=cut.blocks, group=cut.group)
            method = cheapest(sizes, self.allowed(sizes))
            most = method.at_once(sizes, self.memory)
            made = (kind, x, weight, cut.group, *arguments, method.name, most)
            self._layers[key] = native.NativeLayer(*made) if method.is_native(sizes) else None
        return self._layers[key]


def applying(sizes: Sizes) -> list[Method]:
    """Return the methods that are there for such a call."""
    return [method for method in METHODS if method.applies(sizes)]


def cheapest(sizes: Sizes, among: Sequence[Method]) -> Method:
    """Return the method that is the cheapest by its own estimate."""
    return min(among, key=lambda method: method.operations(sizes)) if len(among) > 1 else among[0]
