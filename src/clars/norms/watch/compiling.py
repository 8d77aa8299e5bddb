"""The uses of tracked parameters in a forward that torch.compile looks through."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from clars.errors import UnsupportedLayerError
from clars.norms.owners.tensors import tensors_in
from clars.norms.rules import CALLS, input_of
from clars.norms.watch import traced
from clars.norms.watch.tensor_functions import ELEMENTWISE, EXPANSIONS, LOOKS_AT_SECOND, VIEWS, keeps_every_element
from clars.norms.watch.tracked_parameter import TrackedParameter
from clars.norms.watch.watching import Tracker


class Compiled:
    """Makes each use of a tracked parameter one function in the compiled graph, or refuses it by name.

    Dimension 0 is the batch everywhere: what is compiled is not followed.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.parameters = tracker.parameters
        self.met: set[str] = set()
        self.followed: list[tuple[Tensor, TrackedParameter]] = []

    def parameter(self, value) -> TrackedParameter | None:
        """Return which tracked parameter `value` is: to ask a tensor that changes for its id would bind it for good."""
        found = None
        if isinstance(value, nn.Parameter):
            found = self.parameters.get(id(value))
        else:
            for view, parameter in self.followed:
                if view is value:
                    found = parameter
        return found if found is not None and found.tensor.requires_grad else None

    def __call__(self, func, args, kwargs):
        """Make a call."""
        values = (*args, *kwargs.values()) if kwargs else args
        used = self._first_parameter(values)
        return func(*args, **kwargs) if used is None else self._use(used, func, args, kwargs)

    def _first_parameter(self, values) -> Tensor | None:
        for value in values:
            if isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
                value = self._first_parameter(value)
            if value is not None and self.parameter(value) is not None:
                return value
        return None

    def _use(self, used: Tensor, func, args, kwargs):
        first = input_of(func, args, kwargs)
        if func in CALLS and self.parameter(first) is None:
            return self._traced(func, args, kwargs)
        if func in LOOKS_AT_SECOND and first is not used:
            return func(*args, **kwargs)
        if func in EXPANSIONS:
            return self._expanded(used, func(*args, **kwargs).shape)
        if func in ELEMENTWISE and sum(self.parameter(value) is not None for value in args) == 1:
            return self._broadcast(used, func, args, kwargs)
        result = func(*args, **kwargs)
        if func in VIEWS and result.numel() == used.numel() and keeps_every_element(func, args):
            self.followed.append((result, self.parameter(used)))
        elif any(tensor.requires_grad for tensor in tensors_in((result,))):
            self._refuse((*args, *kwargs.values()), "in a function that is not measured under torch.compile.")
        return result

    def _note_use(self, parameter: TrackedParameter) -> None:
        """Note here a second use, which the compiled backward pass, running no Python, cannot refuse."""
        use = f"{parameter.accumulator.layer} {parameter.name}"
        if use in self.met:
            parameter.accumulator.compiled_twice = True
        self.met.add(use)

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
                self._check_rows(parameter, input_of(func, args, kwargs).shape)
        return traced.call(traced.INDICES[func], tuple(tracked), leaves, args, kwargs)

    def _check_rows(self, parameter: TrackedParameter, shape: torch.Size) -> None:
        problem = parameter.accumulator.current.problem_of(shape[0]) if len(shape) else None
        if problem:
            raise UnsupportedLayerError({parameter.accumulator.layer: problem})

    def _broadcast(self, tensor: Tensor, func, args, kwargs):
        shape = torch.broadcast_shapes(*(each.shape for each in tensors_in(args)))
        wide = self._expanded(tensor, shape)
        return func(*(wide if value is tensor else value for value in args), **kwargs)

    def _expanded(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        if len(tensor.shape) == len(shape) and shape and tensor.shape[0] != 1:
            self._refuse([tensor], f"where dimension 0 of {tuple(shape)} should be the batch.")
        parameter = self.parameter(tensor)
        self._check_rows(parameter, shape)
        self._note_use(parameter)
        accumulator = parameter.accumulator
        return traced.expand(tensor, tuple(shape), accumulator.text, accumulator.leaf(tensor))

    def _refuse(self, values: Iterable, place: str) -> None:
        found = [parameter for value in tensors_in(values) if (parameter := self.parameter(value)) is not None]
        raise UnsupportedLayerError({parameter.layer: f"uses its parameters {place}" for parameter in found})
