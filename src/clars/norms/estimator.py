"""Which examples of a batch are measured."""

import random
import warnings

from clars.errors import UserError
from clars.norms.methods.chooser import Chooser, Report
from clars.norms.methods.measure import Measure

ESTIMATORS = ("exact", "subset")


class Estimator:
    """Draws, for each backward pass, the examples whose norms are formed.

    "exact" takes them all. "subset" cuts the batch into 1 / fraction blocks of consecutive examples and draws one of
    them: every example is measured with the same probability, so the block's sums, times the number of blocks, are
    unbiased in whatever order the examples come. Blocks are views: no example is copied.

    Args:
        name: "exact" or "subset".
        fraction: of the batch, for "subset"; 1/8 by default.
        seed: of the draws, which leave torch's own random state alone.
        memory, timed: see `Chooser`.

    Raises:
        ValueError: an unknown name, a fraction outside (0, 1], memory that is not positive.

    Warns:
        UserWarning: a fraction for "exact", which measures everything.
    """

    def __init__(
        self, name: str, fraction: float | None, seed: int, memory: int | None = None, timed: bool | None = None
    ) -> None:
        if name not in ESTIMATORS:
            raise ValueError(f"estimator={name!r} is not known: use 'exact' or 'subset'.")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction!r} is not a share of the batch: use a number above 0, up to 1.")
        if memory is not None and memory <= 0:
            raise ValueError(f"memory={memory!r} is not a number of bytes above 0.")
        if fraction is not None and name == "exact":
            warnings.warn("fraction has no effect on estimator='exact', which measures every example.", stacklevel=3)
        self.name = name
        self.blocks = 1 if name == "exact" else max(1, round(1 / (fraction or 1 / 8)))
        self.compiled = False
        self._random = random.Random(seed)
        self.chooser = Chooser(memory, timed)
        self.everything = Measure(self.chooser)

    def seed(self, seed: int) -> None:
        """Begin the draws anew."""
        self._random.seed(seed)

    def report_to(self, report: Report | None) -> None:
        """Have each choice of a method reported; see `Chooser`."""
        self.chooser.report = report
        self.everything = Measure(self.chooser)  # another one, by which calls of before are recognised no more

    def cut(self, examples: int) -> int:
        """Return into how many blocks a batch is cut."""
        return min(self.blocks, examples)

    def draw(self, examples: int) -> tuple[Measure, int]:
        """Return which of `examples` rows to measure now, and into how many blocks the batch was cut."""
        blocks = self.cut(examples)
        if blocks == 1:
            return self.everything, 1
        block = self._random.randrange(blocks)
        rows = slice(block * examples // blocks, (block + 1) * examples // blocks)
        return self.everything._replace(rows=rows), blocks

    def without_draw(self) -> Measure:
        """Return what to measure in a compiled pass, where one draw would be compiled in for good: everything."""
        self.compiled = True
        return self.everything

    def check(self) -> None:
        """Refuse an estimator that a compilation has overridden.

        Raises:
            ValueError: "subset" was asked for, and the model is compiled.
        """
        if self.compiled and self.blocks > 1:
            raise UserError(
                "estimator='subset' draws anew at every step, which a compiled model cannot. Use estimator='exact' "
                "with torch.compile."
            )
