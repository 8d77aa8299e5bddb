"""The direction that LAMB takes, of many tensors, a limited part of them at a time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native import where
from clars.native.squares import BLOCK, squared_norms

# Numbers that are handled at a time: what is made of them on the way takes at most five times their memory, however
# large the model is. On a processor fewer stay in its cache meanwhile (`BLOCK`); a GPU is kept busy by as many.
BUCKET = 2**22


class Moments(NamedTuple):
    """The scalar options of a direction. `step` is the number of the step, from 1; a tensor where it is repeated."""

    betas: tuple[float, float]
    weight_decay: float
    eps: float
    step: int | Tensor


class Tensors(NamedTuple):
    """Weights, gradients, and the moving averages of gradients and of their squares, of the same shapes each."""

    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    averages: Sequence[Tensor]
    squares: Sequence[Tensor]


def squared_direction_norms(
    tensors: Tensors, factor: Tensor | float, options: Moments, dtype: torch.dtype
) -> list[Tensor]:
    """Return the squared norm of the direction u of each tensor, accumulated in `dtype` at least.

        u = m_hat / (sqrt(v_hat) + eps) + weight_decay * w

    The averages m and v are those after the step, and are not changed.

    Args:
        tensors: before the step.
        factor: by which the gradients are still to be multiplied.
        options: of all tensors.
        dtype: float32 or float64.
    """
    found: list[list[Tensor]] = [[] for _ in tensors.weights]
    for places, part in _buckets(tensors):
        averages, gradients = part.averages, _scaled(part, factor)
        averages = torch._foreach_lerp(averages, gradients, 1.0 - options.betas[0])
        squares = torch._foreach_mul(part.squares, options.betas[1])
        directions = _directions(Tensors(part.weights, gradients, averages, squares), options)
        for place, square in zip(places, squared_norms(directions, dtype).unbind()):
            found[place].append(square)
    return [each[0] if len(each) == 1 else torch.stack(each).sum() for each in found]


def step(tensors: Tensors, rates: Sequence[Tensor], options: Moments) -> None:
    """Change the averages m and v by the gradients, and the weights by w <- w - rate * u, each with its own rate."""
    for places, part in _buckets(tensors):
        part = part._replace(gradients=_scaled(part, 1.0))
        torch._foreach_lerp_(part.averages, part.gradients, 1.0 - options.betas[0])
        torch._foreach_mul_(part.squares, options.betas[1])
        changes = _directions(part, options)
        torch._foreach_mul_(changes, [rates[place] for place in places])
        torch._foreach_sub_(part.weights, changes)


def _directions(part: Tensors, options: Moments) -> list[Tensor]:
    """Finish the squares, which were multiplied by beta, and return u."""
    weights, gradients, averages, squares = part
    (first, second), step = options.betas, options.step
    torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - second)
    # m_hat / (sqrt(v_hat) + eps) = m / (a * sqrt(v) + b), with both corrections of bias in a and b
    corrected = 1.0 - first**step
    bottoms = torch._foreach_sqrt(squares)
    factor, term = corrected / (1.0 - second**step) ** 0.5, corrected * options.eps
    if isinstance(step, Tensor):  # a list of it: of a lone tensor, some of these read the number
        factor, term = ([value.to(bottoms[0].dtype)] * len(bottoms) for value in (factor, term))
    torch._foreach_mul_(bottoms, factor)
    torch._foreach_add_(bottoms, term)
    directions = torch._foreach_div(averages, bottoms)
    if options.weight_decay:
        torch._foreach_add_(directions, weights, alpha=options.weight_decay)
    return directions


def _scaled(part: Tensors, factor: Tensor | float) -> list[Tensor]:
    """Return gradients in the averages' precision, times the factor."""
    gradients = [gradient.to(average.dtype) for gradient, average in zip(part.gradients, part.averages)]
    return torch._foreach_mul(gradients, factor) if isinstance(factor, Tensor) or factor != 1.0 else gradients


def _buckets(tensors: Tensors) -> Iterator[tuple[list[int], Tensors]]:
    """Yield parts of the tensors that have about `BUCKET` numbers together, and which tensors they are of."""
    limit = BLOCK if tensors.weights and where.on_processor(tensors.weights[0]) else BUCKET
    places: list[int] = []
    held: list[Sequence[Tensor]] = []
    numbers = 0
    for place, each in enumerate(zip(*tensors)):
        for part in _cut(each, limit):
            places.append(place)
            held.append(part)
            numbers += part[0].numel()
            if numbers >= limit:
                yield places, Tensors(*map(list, zip(*held)))
                places, held, numbers = [], [], 0
    if held:
        yield places, Tensors(*map(list, zip(*held)))


def _cut(tensors: Sequence[Tensor], limit: int) -> list[Sequence[Tensor]]:
    """Return the same parts of tensors of one shape, of `limit` numbers at most where they lie in memory in order."""
    if tensors[0].numel() <= limit or not all(tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    return list(zip(*(tensor.view(-1).split(limit) for tensor in tensors)))
