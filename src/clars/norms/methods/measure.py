"""What a backward pass measures, and the gradients and norms of weights and biases that it forms."""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from clars import native
from clars.norms.methods.chooser import Chooser, cheapest
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.gram import Gram
from clars.norms.methods.groups import number, summed
from clars.norms.methods.method import Operands
from clars.norms.methods.products import squared_norms
from clars.norms.methods.sizes import Sizes
from clars.precision import wide

EVERYTHING = slice(None)


class Measure(NamedTuple):
    """Which examples of a backward pass are measured, and by what means.

    Attributes:
        chooser: of the methods.
        rows: the measured examples; all of them, or one of several blocks of the batch.
        layer: whose pass it is, for reports.
        group: consecutive examples whose contributions are summed before the norm is taken; the last may be fewer.
    """

    chooser: Chooser
    rows: slice = EVERYTHING
    layer: str = ""
    group: int = 1

    @property
    def everything(self) -> bool:
        """Whether all examples are measured."""
        return self.rows == EVERYTHING

    @property
    def memory(self) -> int | None:
        """Bytes that one piece of work may take beside the gradient itself; None is the device's default."""
        return self.chooser.memory

    def of_rows(self, rows: int) -> "Measure":
        """Return what to measure where each example has so many consecutive rows."""
        if rows == 1:
            return self
        first, last = self.rows.start, self.rows.stop
        some = self.rows if self.everything else slice(first * rows, last * rows)
        return self._replace(rows=some, group=self.group * rows)

    def of(self, values: Tensor) -> Tensor:
        """Return the measured examples' part of what was formed of all of them, [B, ...]."""
        return values if self.everything else values[self.rows]

    def of_groups(self, squares: Tensor) -> Tensor:
        """Return the measured groups' part of what was formed of all of them, [groups, ...]."""
        if self.everything:
            return squares
        return squares[self.rows.start // self.group : number(self.rows.stop, self.group)]

    def squared(self, contributions: Tensor) -> Tensor:
        """Return the squared norms of measured examples' contributions [b, ...], or of the sums over their groups."""
        return squared_norms(summed(contributions, self.group))


def weight_contribution(operands: Operands, measure: Measure | None) -> Contribution:
    """Return the weight's gradient and the measured examples' or groups' squared norms, by the cheapest exact method.

    Where a part of the batch is measured, its norms are formed beside the ordinary gradient. Only where the C++
    kernels form the gradient from all the examples' products anyway are theirs among them. Without a measure the
    gradient is formed alone.
    """
    if measure is None:
        return Contribution(operands.gradient().to(operands.weight.dtype))
    some, sizes = operands, operands.sizes()
    sizes = replace(sizes, group=min(measure.group, sizes.examples))
    part = not measure.everything and not _forms_every_product(sizes, measure.chooser)
    if part:
        some = operands.of(measure.rows)
        sizes = some.sizes()
        sizes = replace(sizes, group=min(measure.group, sizes.examples))
    method = measure.chooser.choose(sizes, some, measure.layer)
    gradient, squares = method.form(some, sizes, measure.memory)
    if gradient is None or part:
        gradient = operands.gradient()
    return Contribution(gradient.to(operands.weight.dtype), squares if part else measure.of_groups(squares))


def _forms_every_product(sizes: Sizes, chooser: Chooser) -> bool:
    return sizes.native and not isinstance(cheapest(sizes, chooser.allowed(sizes)), Gram)


def bias_contribution(gy: Tensor, measure: Measure | None) -> Contribution:
    """Return the gradient [P] of an added vector, gy [B, P, T] summed over positions and examples, and the norms."""
    if measure is None:
        return Contribution(gy.sum((0, 2), dtype=wide(gy.dtype)).to(gy.dtype))
    if native.applies(gy, gy):
        gradient, squares = native.kernel("position_sums")(gy, min(measure.group, len(gy)))
        return Contribution(gradient, measure.of_groups(squares))
    per_example = gy.sum(2, dtype=wide(gy.dtype))
    return Contribution(per_example.sum(0).to(gy.dtype), measure.squared(measure.of(per_example)))
