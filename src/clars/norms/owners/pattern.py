"""How the examples of a batch lie along a dimension of a tensor."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from clars.errors import UserError, quoted


class Pattern(NamedTuple):
    """Along dimension `dim`, of outer * B * inner indices, index (o * B + i) * inner + r belongs to example i of B.

    A batch itself is (0, 1, 1); windows [B * n, ...] are (0, 1, n); frames [n * B, ...], a time after the other,
    (0, n, 1); and sequences [T, B, ...] (1, 1, 1).
    """

    dim: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def rows(self) -> int:
        """How many indices an example has."""
        return self.outer * self.inner

    @property
    def consecutive(self) -> bool:
        """Whether an example's rows of dimension 0 lie together."""
        return self.dim == 0 and self.outer == 1

    def fits(self, shape: Sequence[int], examples: int) -> bool:
        """Tell whether a tensor of such a shape can hold so many examples in this way."""
        return self.dim < len(shape) and shape[self.dim] == examples * self.rows

    def examples(self, shape: Sequence[int]) -> int:
        """Return how many examples a tensor of such a shape holds."""
        return shape[self.dim] // self.rows

    def gathered(self, x: Tensor) -> Tensor:
        """Return x with the examples in dimension 0 and each one's rows together, [B * rows, ...]."""
        if self.consecutive:
            return x
        apart = x.unflatten(self.dim, (self.outer, -1, self.inner))
        return apart.movedim((self.dim + 1, self.dim, self.dim + 2), (0, 1, 2)).flatten(0, 2)

    def scattered(self, x: Tensor) -> Tensor:
        """Undo `gathered`; in memory the result lies as it does where nothing was gathered."""
        if self.consecutive:
            return x
        apart = x.unflatten(0, (-1, self.outer, self.inner))
        placed = apart.movedim((0, 1, 2), (self.dim + 1, self.dim, self.dim + 2))
        return placed.flatten(self.dim, self.dim + 2).contiguous()

    def each(self, x: Tensor) -> Tensor:
        """Return x as [B, ..., rows, ...]: each example's part of dimension `dim`, with the examples in front."""
        apart = x.unflatten(self.dim, (self.outer, -1, self.inner))
        return apart.movedim(self.dim + 1, 0).flatten(self.dim + 1, self.dim + 2)


PLAIN = Pattern()


def read(words: str, shape: Sequence[int], examples: int) -> Pattern:
    """Return the pattern that a user's words tell of a tensor's first dimensions.

    "(b n)" says that the rows of dimension 0 of an example b lie together, "(n b)" that the examples take turns, and
    "t b" that they lie along dimension 1. `b` is the example; the other names say nothing.

    Args:
        words: of the user.
        shape: of the tensor.
        examples: how many there are.

    Raises:
        UserError: no such words, or a tensor whose shape they do not fit.
    """
    parts = re.findall(r"\(([^()]*)\)|(\S+)", words)
    dims = [(inside or alone).split() for inside, alone in parts]
    where = [(dim, names) for dim, names in enumerate(dims) if "b" in names]
    if len(where) != 1 or len(where[0][1]) > 3 or sum(names.count("b") for names in dims) != 1:
        raise UserError(
            f"rows={quoted(words)} does not tell where the examples are: write '(b n)' where an example's rows of "
            "dimension 0 lie together, '(n b)' where the examples take turns, 'n b' where they lie along dimension 1."
        )
    ((dim, names),) = where
    size = shape[dim] if dim < len(shape) else 0
    if not size or size % examples:
        raise UserError(f"rows={quoted(words)} does not fit an input of shape {tuple(shape)} and {examples} examples.")
    rows = size // examples
    if len(names) == 1:
        if rows != 1:
            raise UserError(f"rows={quoted(words)}: dimension {dim} of {tuple(shape)} has more than {examples} rows.")
        return Pattern(dim)
    if len(names) == 3:
        raise UserError(f"rows={quoted(words)}: of rows before and after 'b' one cannot tell how many are which.")
    return Pattern(dim, 1, rows) if names[0] == "b" else Pattern(dim, rows, 1)
