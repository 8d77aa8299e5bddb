"""The momentum update of many tensors at once, each with a rate of its own."""

from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor

from clars import native
from clars.native.squares import pieces


class Momentum(NamedTuple):
    """The scalar options of the update."""

    momentum: float
    weight_decay: float
    nesterov: bool
    rate_in_buffer: bool = True


def update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor | None],
    rates: Sequence[Tensor],
    options: Momentum,
) -> None:
    """Take the step b <- momentum * b + rate * (g + weight_decay * w), w <- w - (rate * (...) + momentum * b).

    Without Nesterov, w <- w - b; without momentum there is no b. With the rate outside the buffer, b <- momentum * b +
    (g + weight_decay * w), and w loses rate times what it would lose. Small tensors take each operation together,
    large ones on the CPU take all operations a block at a time; the values are the same.

    Args:
        parameters, gradients, buffers: tensors of the same shapes; buffers are None without momentum.
        rates: a scalar tensor for each.
    """
    together: list[tuple] = []
    every = list(zip(parameters, gradients, buffers, rates))
    fits = _alike(parameters, gradients, buffers) if options.momentum and native.loaded() else [False] * len(every)
    if any(fits):
        *tensors, chosen = map(list, zip(*compress(every, fits)))
        native.kernel("update")(*tensors, torch.stack(chosen).float(), *options)
    for tensors in (tensors for tensors, fit in zip(every, fits) if not fit):
        *whole, rate = tensors
        cut = [(None,) if value is None else pieces(value) for value in whole]
        if len(cut[0]) > 1 and all(len(part) == len(cut[0]) or part == (None,) for part in cut):
            _in_blocks(*cut, rate, options)
        else:
            together.append(tensors)
    if together:
        _together(*map(list, zip(*together)), options)


def _alike(parameters: Sequence[Tensor], *others: Sequence[Tensor]) -> list[bool]:
    """Tell of each parameter whether the C++ kernel can walk through its memory and the others' together."""
    return list(map(all, zip(*(native.kernel("alike")(parameters, other) for other in others))))


def _in_blocks(parameter, gradient, buffer, rate: Tensor, options: Momentum) -> None:
    buffers = buffer if len(buffer) == len(parameter) else [None] * len(parameter)
    scratch = torch.empty_like(parameter[0])
    inside = options.rate_in_buffer
    for w, g, b in zip(parameter, gradient, buffers):
        change = own = torch.add(g, w, alpha=options.weight_decay, out=scratch[: len(w)])
        if inside:
            change.mul_(rate)
        if b is not None:
            b.mul_(options.momentum).add_(change)
            change = change.add_(b, alpha=options.momentum) if options.nesterov else b
        w.sub_(change if inside else torch.mul(change, rate, out=own))


def _together(parameters, gradients, buffers, rates, options: Momentum) -> None:
    inside = options.rate_in_buffer
    if options.weight_decay:
        change = torch._foreach_add(gradients, parameters, alpha=options.weight_decay)
        if inside:
            torch._foreach_mul_(change, rates)
    else:
        change = torch._foreach_mul(gradients, rates) if inside else [gradient.clone() for gradient in gradients]
    if options.momentum:
        torch._foreach_mul_(buffers, options.momentum)
        torch._foreach_add_(buffers, change)
        if options.nesterov:
            torch._foreach_add_(change, buffers, alpha=options.momentum)
        else:
            change = buffers
    torch._foreach_sub_(parameters, change if inside else torch._foreach_mul(change, rates))
