"""What a backward pass measures, and the gradients and norms of weights and biases that it forms."""

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from clars import native
from clars.norms.methods.chooser import Chooser, cheapest
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.gram import Gram
from clars.norms.methods.groups import summed
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

    def of(self, squares: Tensor) -> Tensor:
        """Return the measured examples' part of what was formed of all of them, [B, ...]."""
        return squares if self.everything else squares[self.rows]

    def squared(self, contributions: Tensor) -> Tensor:
        """Return the squared norms of measured examples' contributions [b, ...], or of the sums over their groups."""
        return squared_norms(summed(contributions, self.group))


def weight_contribution(operands: Operands, measure: Measure) -> Contribution:
    """Return the weight's gradient and the measured examples' or groups' squared norms, by the cheapest exact method.

    Where a part of the batch is measured, its norms are formed beside the ordinary gradient. Only where the C++
    kernels form the gradient from all the examples' products anyway are theirs among them.
    """
    some, sizes = operands, operands.sizes()
    sizes = replace(sizes, group=min(measure.group, sizes.examples))
    part = not measure.everything and not _forms_every_product(sizes, measure.chooser)
    if part:
        some = operands.of(measure.rows)
        sizes = some.sizes()
    method = measure.chooser.choose(sizes, some, measure.layer)
    gradient, squares = method.form(some, sizes, measure.memory)
    if gradient is None or part:
        gradient = operands.gradient()
    return Contribution(gradient.to(operands.weight.dtype), squares if part else measure.of(squares))


def _forms_every_product(sizes: Sizes, chooser: Chooser) -> bool:
    return sizes.native and not isinstance(cheapest(sizes, chooser.allowed(sizes)), Gram)


def bias_contribution(gy: Tensor, measure: Measure) -> Contribution:
    """Return the gradient [P] of an added vector, gy [B, P, T] summed over positions and examples, and the norms."""
    if native.applies(gy, gy):
        gradient, squares = native.kernel("position_sums")(gy, min(measure.group, len(gy)))
        return Contribution(gradient, measure.of(squares))
    per_example = gy.sum(2, dtype=wide(gy.dtype))
    return Contribution(per_example.sum(0).to(gy.dtype), measure.squared(measure.of(per_example)))
