"""Calls in which parameters, or what is computed from them, meet the examples of a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from clars.norms.owners import Pattern
from clars.norms.owners.tensors import replaced, tensors_in
from clars.norms.watch.decisions import Decision
from clars.norms.watch.expansion import Target, expanded, met
from clars.norms.watch.expressions import Expression, Operand
from clars.norms.watch.tensor_functions import STACKS, dim_of


def meet(
    decision: Decision,
    func: Callable,
    args: tuple,
    kwargs: dict,
    find: Callable[[Tensor], Operand | None],
    examples: int | None,
):
    """Make a call in which parameters are broadcast over the examples.

    Args:
        decision: where the examples are in the result.
        func, args, kwargs: the call.
        find: tells which operand a tensor is.
        examples: how many there are; None where no forward has told: dimension 0 is the batch.
    """
    (pattern,), dimensions = decision.outputs, decision.dimensions
    if func in STACKS:  # what is stacked has a dimension less
        at = dim_of(args, kwargs) % dimensions
        pattern, dimensions = pattern._replace(dim=pattern.dim - (at < pattern.dim)), dimensions - 1
    values = list(dict.fromkeys(tensors_in((args, kwargs))))
    if examples is None:
        examples = max(values, key=lambda value: value.dim()).shape[0]
    targets = []
    for value in values:
        operand = find(value)
        if operand is not None:
            before = getattr(operand, "before", None)
            own = before if before is not None and _once(before, dimensions, pattern) else operand
            tensor = own.tensor if isinstance(own, Expression) else value
            targets.append((value, met(tensor, own, dimensions, pattern, examples)))
    wide = expanded([target for _, target in targets])
    places = {id(value): new.expand(_shape(value, target)) for (value, target), new in zip(targets, wide)}
    return func(*replaced(args, places), **replaced(kwargs, places))


def _once(operand: Operand, dimensions: int, pattern: Pattern) -> bool:
    """Tell whether an operand, in a result of so many dimensions, is the same for all examples."""
    dim = pattern.dim - (dimensions - operand.tensor.dim())
    return dim < 0 or operand.tensor.shape[dim] == 1


def _shape(value: Tensor, target: Target) -> torch.Size:
    """Return the shape that stands for a value: its own, but for the dimension that has the examples."""
    if target.pattern is None:
        return value.shape
    aligned = [1] * (len(target.shape) - value.dim()) + list(value.shape)
    aligned[target.pattern.dim] = target.shape[target.pattern.dim]
    return torch.Size(aligned)
