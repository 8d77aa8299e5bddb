"""Watches a model's forward and replaces each use of a tracked parameter by one that books its norms."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from clars.errors import UnsupportedLayerError
from clars.norms.watch import traced
from clars.norms.rules.functions import ELEMENTWISE, EXPANSIONS, LOOKS_AT_SECOND, RULES, VIEWS
from clars.norms.watch.inputs import tensors_in
from clars.norms.watch.repeated_call import known
from clars.norms.watch.part import Part
from clars.norms.watch.measured_call import Call, spread, tapped
from clars.sharding.fsdp import is_distributed

if TYPE_CHECKING:
    from clars.norms.tracker import ExampleNorms

DISTRIBUTED = (
    "computes with parameters that are distributed tensors (tensor parallelism), so that a process sees a "
    "part of each example's gradient. Use fully_shard alone."
)


class Interception(TorchFunctionMode):
    """While it is entered, every use of a tracked parameter is a known rule, harmless, or refused by name.

    What is refused runs as it is, and is told when the whole forward has been seen.

    Args:
        tracker: whose parameters are looked for.
    """

    def __init__(self, tracker: "ExampleNorms") -> None:
        super().__init__()
        self.tracker, self.parts = tracker, tracker.parts
        self.compiling = torch.compiler.is_compiling()
        self.views: dict[int, Part] = {}  # of parameters
        self.compiled: set[str] = set()  # what a compilation has met so far
        self.followed: list[tuple[Tensor, Part]] = []  # keeps these views alive, so that no other takes their id
        self.refused: dict[str, str] = {}

    def part(self, value) -> Part | None:
        """Return whose parameter `value` is, if it is one that requires a gradient now."""
        part = self._compiled_part(value) if self.compiling else self.parts.get(id(value)) or self.views.get(id(value))
        return part if part is not None and part.parameter.requires_grad else None

    def _compiled_part(self, value) -> Part | None:
        """Do the same while a forward is compiled: to ask a tensor that changes for its id would bind it for good."""
        if isinstance(value, nn.Parameter):
            return self.parts.get(id(value))
        for view, part in self.followed:
            if view is value:
                return part
        return None

    def measured_part(self, tensor: Tensor | None) -> Part | None:
        """Return whose parameter a rule is about to measure; None for other tensors."""
        part = self.part(tensor)
        if part is not None:
            if is_distributed(tensor):  # where its layer computes, fully_shard has put its parts together
                raise UnsupportedLayerError({part.account.layer: DISTRIBUTED})
            part.account.measured.add(part.name)
        return part

    def _note_use(self, part: Part) -> None:
        """Note here a second use, which the compiled backward pass, running no Python, cannot refuse."""
        use = f"{part.account.layer} {part.name}"
        if use in self.compiled:
            part.account.compiled_twice = True
        self.compiled.add(use)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() != self.compiling:
            return func(*args, **kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        again = None if self.compiling else self._again(func, values, kwargs)
        if again is not None:
            return again
        used = self._first_part(values)
        return func(*args, **kwargs) if used is None else self._use(used, func, args, kwargs)

    def _again(self, func, values, kwargs) -> Tensor | None:
        """Return the output of a call that is known; None for others."""
        parts = self.parts
        for value in values[1:]:
            part = parts.get(id(value))
            if part is not None and part.known is not None:
                first = id(values[0])
                if first in parts or first in self.views:
                    return None
                return part.known.again(func, values, tuple(kwargs))
        return None

    def _first_part(self, values) -> Tensor | None:
        """Return the first tracked parameter among `values`, those in lists and tuples included."""
        for value in values:
            if isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
                value = self._first_part(value)
            if value is not None and self.part(value) is not None:
                return value
        return None

    def _use(self, used: Tensor, func, args, kwargs):
        if self.compiling:
            return self._measure(used, func, args, kwargs)
        try:
            return self._measure(used, func, args, kwargs)
        except UnsupportedLayerError as error:
            self.refused = error.problems | self.refused  # the first thing that a layer does tells the most
            return func(*args, **kwargs)

    def _measure(self, used: Tensor, func, args, kwargs):
        first = args[0] if args else kwargs.get("input")
        if func in RULES and self.part(first) is None:
            if self.compiling:
                return self._traced(func, args, kwargs)
            if first.dim() and first.shape[0] == 0:  # a batch without an example
                return func(*args, **kwargs)
            result = RULES[func](self.measured_part, *args, **kwargs)
            return self._tapped(used, func, args, kwargs, result) if isinstance(result, Call) else result
        if func in LOOKS_AT_SECOND and first is not used:
            return func(*args, **kwargs)
        if func in EXPANSIONS:
            return self._expanded(used, func(*args, **kwargs).shape)
        if func in ELEMENTWISE and sum(self.part(value) is not None for value in args) == 1:
            return self._broadcast(used, func, args, kwargs)
        result = func(*args, **kwargs)
        if func in VIEWS and result.numel() == used.numel() and _keeps_every_element(func, args):
            part = self.part(used)
            self.followed.append((result, part))
            if not self.compiling:
                self.views[id(result)] = part
        elif _differentiable(result):
            self._refuse((*args, *kwargs.values()), f"in {_name(func)}, for which no exact per-example norm is known.")
        return result

    def _tapped(self, used: Tensor, func, args, kwargs, call: Call) -> Tensor:
        y, compiled = tapped(call)
        if compiled is not None and id(used) in self.parts:  # a view is another one at each call
            self.part(used).known = known(func, (*args, *kwargs.values()), tuple(kwargs), call, compiled)
        return y

    def _traced(self, func, args, kwargs):
        """Make the call as one function in the graph of a compilation."""
        tracked, leaves, accounts = [], [], []
        for position, value in enumerate((*args, *kwargs.values())):
            part = self.part(value)
            if part is not None:
                account = part.account
                self._note_use(part)
                if account.text not in accounts:
                    accounts.append(account.text)
                    leaves.append(account.leaf(value))
                tracked.append((position, account.text, accounts.index(account.text)))
                self._check_rows(part, args[0] if args else kwargs["input"])
        return traced.call(traced.INDICES[func], tuple(tracked), leaves, args, kwargs)

    def _check_rows(self, part: Part, x: Tensor) -> None:
        problem = part.account.current.problem_of(x.shape[0]) if x.dim() else None
        if problem:
            raise UnsupportedLayerError({part.account.layer: problem})

    def _broadcast(self, parameter: Tensor, func, args, kwargs):
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors_in(args)))
        expanded = self._expanded(parameter, shape)
        return func(*(expanded if value is parameter else value for value in args), **kwargs)

    def _expanded(self, parameter: Tensor, shape: torch.Size) -> Tensor:
        if len(parameter.shape) == len(shape) and shape and parameter.shape[0] != 1:
            self._refuse([parameter], f"where dimension 0 of {tuple(shape)} should be the batch.")
        if self.compiling:
            part = self.part(parameter)
            self._note_use(part)
            return traced.expand(parameter, tuple(shape), part.account.text, part.account.leaf(parameter))
        return spread(shape, [parameter], [self.measured_part(parameter)])[0]

    def _refuse(self, values: Iterable, where: str) -> None:
        parts = [part for value in tensors_in(values) if (part := self.part(value)) is not None]
        raise UnsupportedLayerError({part.account.layer: f"uses its parameters {where}" for part in parts})


def _keeps_every_element(func, args) -> bool:
    """Indexing by tensors or lists may repeat and drop elements, whatever their number."""
    if func is not Tensor.__getitem__:
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return all(value is None or value is Ellipsis or isinstance(value, (int, slice)) for value in index)


def _name(func) -> str:
    return resolve_name(func) or func.__name__


def _differentiable(result) -> bool:
    return any(tensor.requires_grad for tensor in tensors_in((result,)))
