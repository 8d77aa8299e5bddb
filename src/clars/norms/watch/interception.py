"""Watches a model's forward and replaces each use of a tracked parameter by one that adds up its norms."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.rules import CALLS, input_of
from clars.norms.rules.rule import LayerCall
from clars.norms.watch import traced
from clars.norms.watch.inputs import tensors_in
from clars.norms.watch.measured_call import expanded, measured
from clars.norms.watch.modules import FunctionCall
from clars.norms.watch.repeated_call import recognisable
from clars.norms.watch.tensor_functions import ELEMENTWISE, EXPANSIONS, LOOKS_AT_SECOND, VIEWS
from clars.norms.watch.tracked_parameter import TrackedParameter
from clars.norms.watch.watching import Tracker
from clars.sharding.fsdp import is_distributed

DISTRIBUTED = (
    "computes with parameters that are distributed tensors (tensor parallelism), so that a process sees a "
    "part of each example's gradient. Use fully_shard alone."
)


class Interception(TorchFunctionMode):
    """While it is entered, every use of a tracked parameter has a rule, is harmless, or is refused by name.

    What is refused runs as it is, and is told when the whole forward has been seen.

    Args:
        tracker: whose parameters are looked for.
    """

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker, self.parameters = tracker, tracker.parameters
        self.compiling = where.is_compiling()
        self.views: dict[int, TrackedParameter] = {}
        self.compiled: set[str] = set()  # what a compilation has met so far
        self.followed: list[tuple[Tensor, TrackedParameter]] = []  # keeps views alive, so that no other takes their id
        self.refused: dict[str, str] = {}

    def parameter(self, value) -> TrackedParameter | None:
        """Return which tracked parameter `value` is, if it is one that requires a gradient now."""
        if self.compiling:
            found = self._compiled_parameter(value)
        else:
            found = self.parameters.get(id(value)) or self.views.get(id(value))
        return found if found is not None and found.tensor.requires_grad else None

    def _compiled_parameter(self, value) -> TrackedParameter | None:
        """Do the same while a forward is compiled: to ask a tensor that changes for its id would bind it for good."""
        if isinstance(value, nn.Parameter):
            return self.parameters.get(id(value))
        for view, parameter in self.followed:
            if view is value:
                return parameter
        return None

    def _note_use(self, parameter: TrackedParameter) -> None:
        """Note here a second use, which the compiled backward pass, running no Python, cannot refuse."""
        use = f"{parameter.accumulator.layer} {parameter.name}"
        if use in self.compiled:
            parameter.accumulator.compiled_twice = True
        self.compiled.add(use)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.is_grad_enabled() or where.is_compiling() != self.compiling:
            return func(*args, **kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        again = None if self.compiling else self._again(func, values, tuple(kwargs))
        if again is not None:
            return again
        used = self._first_parameter(values)
        return func(*args, **kwargs) if used is None else self._use(used, func, args, kwargs)

    def again(self, call: FunctionCall) -> Tensor | None:
        """Return the output of a call that is recognised, made without being intercepted; None for others."""
        if not torch.is_grad_enabled():
            return None
        with torch._C.DisableTorchFunction():
            return self._again(*call)

    def _again(self, func, values, keywords) -> Tensor | None:
        """Return the output of a call that is recognised; None for others."""
        parameters = self.parameters
        for value in values[1:]:
            parameter = parameters.get(id(value))
            if parameter is not None and parameter.last_call is not None:
                first = id(values[0])
                if first in parameters or first in self.views:
                    return None
                return parameter.last_call.again(func, values, keywords)
        return None

    def _first_parameter(self, values) -> Tensor | None:
        """Return the first tracked parameter among `values`, those in lists and tuples included."""
        for value in values:
            if isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
                value = self._first_parameter(value)
            if value is not None and self.parameter(value) is not None:
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
        first = input_of(func, args, kwargs)
        if func in CALLS and self.parameter(first) is None:
            if self.compiling:
                return self._traced(func, args, kwargs)
            if first.dim() and first.shape[0] == 0:  # a batch without an example
                return func(*args, **kwargs)
            result = CALLS[func](_Find(self), *args, **kwargs)
            return self._measured(used, func, args, kwargs, result) if isinstance(result, LayerCall) else result
        if func in LOOKS_AT_SECOND and first is not used:
            return func(*args, **kwargs)
        if func in EXPANSIONS:
            return self._expanded(used, func(*args, **kwargs).shape)
        if func in ELEMENTWISE and sum(self.parameter(value) is not None for value in args) == 1:
            return self._broadcast(used, func, args, kwargs)
        result = func(*args, **kwargs)
        if func in VIEWS and result.numel() == used.numel() and _keeps_every_element(func, args):
            self._follow(result, self.parameter(used))
        elif any(tensor.requires_grad for tensor in tensors_in((result,))):
            self._refuse((*args, *kwargs.values()), f"in {_name(func)}, for which no exact per-example norm is known.")
        return result

    def _follow(self, view: Tensor, parameter: TrackedParameter) -> None:
        self.followed.append((view, parameter))
        if not self.compiling:
            self.views[id(view)] = parameter

    def _measured(self, used: Tensor, func, args, kwargs, call: LayerCall) -> Tensor:
        y, native_call = measured(call)
        if native_call is not None and id(used) in self.parameters:  # a view is another one at each call
            values = (*args, *kwargs.values())
            self.parameter(used).last_call = recognisable(func, values, tuple(kwargs), call, native_call)
        return y

    def _traced(self, func, args, kwargs):
        """Make the call as one function in the graph of a compilation."""
        tracked, leaves, accumulators = [], [], []
        for position, value in enumerate((*args, *kwargs.values())):
            parameter = self.parameter(value)
            if parameter is not None:
                accumulator = parameter.accumulator
                self._note_use(parameter)
                if accumulator.text not in accumulators:
                    accumulators.append(accumulator.text)
                    leaves.append(accumulator.leaf(value))
                tracked.append((position, accumulator.text, accumulators.index(accumulator.text)))
                self._check_rows(parameter, input_of(func, args, kwargs))
        return traced.call(traced.INDICES[func], tuple(tracked), leaves, args, kwargs)

    def _check_rows(self, parameter: TrackedParameter, x: Tensor) -> None:
        problem = parameter.accumulator.current.problem_of(x.shape[0]) if x.dim() else None
        if problem:
            raise UnsupportedLayerError({parameter.accumulator.layer: problem})

    def _broadcast(self, tensor: Tensor, func, args, kwargs):
        shape = torch.broadcast_shapes(*(each.shape for each in tensors_in(args)))
        wide = self._expanded(tensor, shape)
        return func(*(wide if value is tensor else value for value in args), **kwargs)

    def _expanded(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        if len(tensor.shape) == len(shape) and shape and tensor.shape[0] != 1:
            self._refuse([tensor], f"where dimension 0 of {tuple(shape)} should be the batch.")
        if self.compiling:
            parameter = self.parameter(tensor)
            self._note_use(parameter)
            accumulator = parameter.accumulator
            return traced.expand(tensor, tuple(shape), accumulator.text, accumulator.leaf(tensor))
        return _Find(self).expand(shape, [tensor])[0]

    def _refuse(self, values: Iterable, place: str) -> None:
        found = [parameter for value in tensors_in(values) if (parameter := self.parameter(value)) is not None]
        raise UnsupportedLayerError({parameter.layer: f"uses its parameters {place}" for parameter in found})


class _Find:
    """Tells rules which of a call's tensors are tracked parameters that are about to be measured.

    Made for a call, not kept: a cycle would keep copies of weights until Python looks for garbage.
    """

    def __init__(self, interception: Interception) -> None:
        self.interception = interception

    def __call__(self, tensor: Tensor | None) -> TrackedParameter | None:
        parameter = self.interception.parameter(tensor)
        if parameter is not None:
            if is_distributed(tensor):  # where its layer computes, fully_shard has put its parts together
                raise UnsupportedLayerError({parameter.layer: DISTRIBUTED})
            parameter.accumulator.measured.add(parameter.name)
        return parameter

    def expand(self, shape: torch.Size, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return expanded(shape, tensors, [self(tensor) for tensor in tensors])


def _keeps_every_element(func, args) -> bool:
    """Indexing by tensors or lists may repeat and drop elements, whatever their number."""
    if func is not Tensor.__getitem__:
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return all(value is None or value is Ellipsis or isinstance(value, (int, slice)) for value in index)


def _name(func) -> str:
    return resolve_name(func) or func.__name__
