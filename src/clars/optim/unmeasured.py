"""Layers that have a gradient and no per-example norms of it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import Layer
from clars.sharding.check import UNMEASURED


def refuse(
    layers: Sequence[Layer],
    doubtful: Sequence[int],
    partly: set[str],
    squares: Tensor,
    examples: Tensor,
    remedy: Callable[[Sequence[str]], str],
) -> None:
    """Refuse those layers whose gradient is not zero and has no norms of any process's examples.

    It is asked of sums that all processes share, so that all refuse. The device is waited for only where a process is
    in doubt.

    Args:
        layers: all K of them.
        doubtful: the indices of layers that have a gradient without norms in this process, or not of all parameters.
        partly: names of layers of which a parameter was measured in no process.
        squares: [K], squared norms of the gradients of whole layers.
        examples: [K], how many examples of the global batch were measured.
        remedy: returns what to do about layers, by their names.

    Raises:
        UserError: no layer has norms.
        UnsupportedLayerError: some have none.
    """
    rows = torch.stack([squares, examples], 1)[list(doubtful)].tolist() if doubtful else []
    refused = [
        layers[k].name
        for k, (square, count) in zip(doubtful, rows)
        if square > 0 and (not count or layers[k].name in partly)
    ]
    if refused and not examples.any():
        raise UserError(
            "step() without per-example norms: no backward pass has left the gradients that are there. They were "
            "set by hand, taken by torch.autograd.grad, or formed where another function stands in the place of "
            "torch's own. Call loss.backward() after the model's own forward: the norms are formed in it."
        )
    if refused:
        raise UnsupportedLayerError(dict.fromkeys(refused, UNMEASURED), remedy(refused))
