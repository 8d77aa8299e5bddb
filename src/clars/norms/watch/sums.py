"""The squared norms of one backward pass, and the sums of those of many."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from clars.norms.watch.accumulator import Accumulator


@dataclass
class PassSquares:
    """The squared norms [b] of the measured examples of one backward pass, one of so many blocks of its batch.

    Or those of all groups of its examples. `left` is a boolean scalar tensor, False where the gradient that they belong
    to was set to zero; None stands for True.
    """

    squares: Tensor
    blocks: int
    examples: int
    group: int
    left: Tensor | None = None

    def keep_if(self, left: Tensor) -> None:
        """Keep it only where `left` is True."""
        self.left = left if self.left is None else self.left & left


def sums_of(squares: Tensor, examples: int, group: int, blocks: int = 1) -> Tensor:
    """Return sum of norms, sum of squared norms, number of examples, and sum of the groups' squared sizes, [..., 4].

    They are those of one of the batch's blocks. Each block is as likely to be measured, so that its sums times the
    number of blocks are unbiased.

    Args:
        squares: squared norms [..., number of groups].
        examples: how many are measured.
        group: in groups of how many, of which the last may be smaller.
        blocks: of the batch.
    """
    last = examples - torch.arange(0, examples, group, dtype=squares.dtype, device=squares.device)
    sizes = last.clamp(max=group).expand_as(squares)
    sums = torch.stack((squares.sqrt(), squares, sizes, sizes.square()), -1).sum(-2)
    return sums if blocks == 1 else sums * blocks


def totals(accumulators: Iterable["Accumulator"]) -> dict[str, Tensor]:
    """Return the sums [4] of each accumulator that has any, by layer name; all layers' are formed together."""
    alike: dict[tuple, list[tuple[str, PassSquares]]] = {}
    found: dict[str, Tensor] = {}
    for accumulator in accumulators:
        accumulator.settle()
        if accumulator.compiled_total is not None:
            found[accumulator.layer] = accumulator.compiled_total
        for entry in accumulator.entries:
            squares = entry.squares
            key = (entry.examples, entry.group, entry.blocks, squares.dtype, squares.device)
            alike.setdefault(key, []).append((accumulator.layer, entry))
    for (*cut, _, _), entries in alike.items():
        rows = sums_of(torch.stack([entry.squares for _, entry in entries]), *cut).unbind()
        for (layer, entry), row in zip(entries, rows):
            if entry.left is not None:
                row = torch.where(entry.left, row, 0.0)
            found[layer] = found[layer] + row if layer in found else row
    return found
