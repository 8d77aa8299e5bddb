"""The optimizers of a step that is repeated: their rates are read on the device, and Python's part is put right."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch.optim import SGD, Optimizer

from clars.errors import UserError
from clars.native import where
from clars.optim.layerwise import LayerwiseOptimizer
from clars.optim.live import Live


class Stepper(Protocol):
    """An optimizer, seen from a step that is captured once and repeated."""

    optimizer: Optimizer

    def write(self) -> None:
        """Put what changes from step to step, the rates, where the repeated step reads it."""

    def reading(self) -> Any:
        """Return a context in which the optimizer's step reads there."""

    def keep(self) -> None:
        """Note what the captured step has left in Python."""

    def put(self) -> None:
        """Put that back after a repetition."""

    def options(self) -> object:
        """Return what else a step depends on, to compare."""


def stepper(optimizer: Optimizer) -> Stepper:
    """Return the stepper of an optimizer that has taken a step.

    Raises:
        UserError: its step cannot be repeated.
    """
    return _Layerwise(optimizer) if isinstance(optimizer, LayerwiseOptimizer) else _Plain(optimizer)


class _Layerwise:
    """CLARS, LARS or LAMB."""

    def __init__(self, optimizer: LayerwiseOptimizer) -> None:
        layout = optimizer.layout
        if layout.sharded or layout.steps_in_parts:
            raise UserError(
                f"Under {layout.strategy} a step cannot be captured: its parameters are cut. Use "
                "DistributedDataParallel, or take the step without clars.graphed."
            )
        self.optimizer = optimizer
        names = [layer.name for layer in optimizer.layers]
        device = layout.shards[0].owner.device
        self._others = itemgetter(*(name for name in optimizer.options if name != "lr"))
        self._live = Live(("lr", *optimizer.counters), names, device)
        self._kept: Any = None

    def write(self) -> None:
        self._live.write(self.optimizer.param_groups)

    @contextmanager
    def reading(self) -> Iterator[None]:
        optimizer = self.optimizer
        before = [dict(group) for group in optimizer.param_groups]
        optimizer.live = self._live
        try:
            yield
        finally:
            optimizer.live = None
            for group, kept in zip(optimizer.param_groups, before):  # a captured step does not count
                group |= {name: kept[name] for name in optimizer.counters}

    def keep(self) -> None:
        self._kept = self.optimizer.kept_of_step()

    def put(self) -> None:
        self.optimizer.put_step(self._kept)

    def options(self) -> object:
        return list(map(self._others, self.optimizer.param_groups))


class _Plain:
    """One of torch's, or of anybody who takes a tensor for the rate."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        if type(optimizer) is not SGD and not all(group.get("capturable") for group in optimizer.param_groups):
            raise UserError(
                f"{type(optimizer).__name__} was not made with capturable=True, so its step cannot be captured: it "
                "may count steps on the host. Make it so, or take the step without a graph where it has no such option."
            )
        first = next(parameter for group in optimizer.param_groups for parameter in group["params"])
        count = len(optimizer.param_groups)
        self._rates = torch.zeros(count, dtype=torch.float32, device=first.device)
        self._written: list[float] | None = None

    def write(self) -> None:
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if rates != self._written:
            where.write(self._rates, rates)
            self._written = rates

    @contextmanager
    def reading(self) -> Iterator[None]:
        groups = self.optimizer.param_groups
        before = [dict(group) for group in groups]
        for group, rate in zip(groups, self._rates.unbind()):
            group["lr"] = rate
            if "fused" in group and "capturable" not in group:  # SGD reads a tensor's number on the host otherwise
                group |= {"fused": True, "foreach": False}
        try:
            yield
        finally:
            for group, kept in zip(groups, before):
                group |= {name: kept[name] for name in ("lr", "fused", "foreach") if name in kept}

    def keep(self) -> None:
        """Nothing is kept."""

    def put(self) -> None:
        """Nothing is kept."""

    def options(self) -> object:
        followed, plain = ("lr", "initial_lr"), (bool, int, float, str, tuple, type(None))
        return [
            {name: value for name, value in group.items() if name not in followed and isinstance(value, plain)}
            for group in self.optimizer.param_groups
        ]
