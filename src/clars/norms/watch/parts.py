"""What several uses of a layer contribute to its gradient: summed per example before the norm is taken."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native import where
from clars.norms.methods.groups import number
from clars.norms.methods.measure import Measure
from clars.norms.methods.method import slices
from clars.norms.methods.products import squared_norms
from clars.precision import wide


class Part(NamedTuple):
    """What one use of a parameter contributes to its gradient, as groups of examples.

    Attributes:
        of: returns the contributions [groups, *shape of the parameter] of a slice of the batch's examples, which holds
            whole groups or a smaller last one.
        parameter: what has the parameter's shape.
    """

    of: Callable[[slice], Tensor]
    parameter: Tensor


def shape_of(tensor: Tensor) -> Tensor:
    """Return what has the shape of a tensor and none of its memory, which strategies may take away meanwhile."""
    return tensor.new_empty(()).expand(tensor.shape)


def kept(contributions: Sequence[Tensor], measure: Measure, parameter: Tensor) -> Part:
    """Return the part of which the contributions of all measured groups are there, in pieces of them."""
    all_of_them = torch.cat(list(contributions)) if len(contributions) > 1 else contributions[0]
    begin = measure.rows.start or 0

    def of(rows: slice) -> Tensor:
        first = (rows.start - begin) // measure.group
        return all_of_them[first : first + number(rows.stop - rows.start, measure.group)]

    return Part(of, shape_of(parameter))


def pieces(measure: Measure, examples: int, bytes_per_group: int, device: torch.device) -> list[slice]:
    """Cut the measured examples of a batch so that the contributions of a piece fit in the memory that may be taken."""
    first, last, _ = measure.rows.indices(examples)
    memory = measure.memory or where.working_set(device.type)
    cut = slices(last - first, bytes_per_group, memory, min(measure.group, last - first))
    return [slice(first + piece.start, first + piece.stop) for piece in cut]


def joint_squares(parts: Sequence[Part], measure: Measure, examples: int) -> Tensor:
    """Return the squared norms [groups] of the sums of all parts of one parameter."""
    parameter = parts[0].parameter
    each = 2 * parameter.numel() * wide(parameter.dtype).itemsize
    squares = []
    for piece in pieces(measure, examples, each, parameter.device):
        total = parts[0].of(piece).to(wide(parameter.dtype))
        for part in parts[1:]:
            total = total + part.of(piece)
        squares.append(squared_norms(total.reshape(len(total), *parameter.shape)))
    return torch.cat(squares)
