"""Measured calls as torch.compile sees them.

Its front end (dynamo) would follow each call through all of the tracker's Python, and compile it anew whenever an
object in there changes. So a measured call is one function in the graph, given tensors and numbers alone; what it does
is seen by the stage behind, which knows tensors only (AOTAutograd).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clars.norms.owners import PLAIN
from clars.norms.rules import CALLS
from clars.norms.rules.rule import LayerCall
from clars.norms.watch.accumulator import Accumulator
from clars.norms.watch.expansion import Target, expanded
from clars.norms.watch.measured_call import measured
from clars.norms.watch.registry import REGISTRY

FUNCTIONS = list(CALLS)
INDICES = {function: index for index, function in enumerate(FUNCTIONS)}


class TracedParameter(NamedTuple):
    """Stands for a tracked parameter: its layer's accumulator, and the leaf that takes the sums out of the graph."""

    accumulator: Accumulator
    leaf: Tensor

    @property
    def layer(self) -> str:
        """The name of its layer."""
        return self.accumulator.layer


class _Find:
    """Tells rules which of a call's tensors are tracked parameters."""

    def __init__(self, parameters: dict[int, TracedParameter]) -> None:
        self.parameters = parameters

    def __call__(self, tensor: Tensor | None) -> TracedParameter | None:
        return self.parameters.get(id(tensor))

    def expand(self, shape: torch.Size, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return expanded([Target(tensor, self(tensor), shape, PLAIN) for tensor in tensors])


def call(index: int, tracked: Sequence[tuple[int, str, int]], leaves: Sequence[Tensor], args: tuple, kwargs: dict):
    """Make a call of a function that has a rule.

    Args:
        index: of the function, in FUNCTIONS.
        tracked: for each tracked parameter its position among the arguments, those by keyword last, the number of its
            accumulator, as text, and that of its leaf.
        leaves: of the accumulators.
        args, kwargs: of the function.
    """
    values = (*args, *kwargs.values())
    parameters = {
        id(values[at]): TracedParameter(REGISTRY.get(int(number)), leaves[leaf]) for at, number, leaf in tracked
    }
    result = CALLS[FUNCTIONS[index]](_Find(parameters), *args, **kwargs)
    return measured(result)[0] if isinstance(result, LayerCall) else result


def expand(tensor: Tensor, shape: Sequence[int], number: str, leaf: Tensor) -> Tensor:
    """Expand a tracked parameter, by the number of its accumulator, to a shape [B, ...]."""
    return expanded([Target(tensor, TracedParameter(REGISTRY.get(int(number)), leaf), torch.Size(shape), PLAIN)])[0]


def keep_whole() -> None:
    """Have torch.compile keep these functions whole."""
    torch.compiler.allow_in_graph([call, expand])
