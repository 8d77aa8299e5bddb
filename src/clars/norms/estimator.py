"""Which examples of a batch are measured, and whether one by one or in groups."""

import random
import warnings

from clars.errors import UserError
from clars.native import where
from clars.norms.methods.chooser import Chooser, Cut, Report
from clars.norms.methods.measure import Measure

ESTIMATORS = ("exact", "group", "subset")
CAPTURED = (
    "estimator='subset' draws anew at every step, and a CUDA graph would repeat one draw. Use estimator='exact' or "
    "'group' in a graph."
)


class Estimator:
    """Tells, for each backward pass, what norms are formed.

    "exact" forms that of every example. "group" cuts the batch into groups of consecutive examples and forms that of
    each group's sum: between CLARS, groups of one, and LARS, one group. A group lies within one backward pass of one
    process, and what is left over makes a smaller one. "subset" cuts the batch into 1 / fraction blocks of consecutive
    examples and draws one of them: every example is measured with the same probability, so the block's sums, times the
    number of blocks, are unbiased in whatever order the examples come. Blocks are views: no example is copied.

    Args:
        name: "exact", "group" or "subset".
        fraction: of the batch, for "subset"; 1/8 by default.
        seed: of the draws, which leave torch's own random state alone.
        memory, timed: see `Chooser`.
        group: how many examples, for "group"; 8 by default.

    Raises:
        ValueError: an unknown name, a fraction outside (0, 1], a group that is no whole number above 0, a fraction and
            a group together, memory that is not positive.

    Warns:
        UserWarning: a fraction or a group for another estimator than theirs; once, a batch smaller than a group.
    """

    def __init__(
        self,
        name: str,
        fraction: float | None,
        seed: int,
        memory: int | None = None,
        timed: bool | None = None,
        group: int | None = None,
    ) -> None:
        if name not in ESTIMATORS:
            raise ValueError(f"estimator={name!r} is not known: use 'exact', 'group' or 'subset'.")
        if memory is not None and memory <= 0:
            raise ValueError(f"memory={memory!r} is not a number of bytes above 0.")
        _check_options(name, fraction, group)
        self.name = name
        self.blocks = max(1, round(1 / (fraction or 1 / 8))) if name == "subset" else 1
        self.group = (group or 8) if name == "group" else 1
        self.compiled = False
        self._random = random.Random(seed)
        self._warned = False
        self.chooser = Chooser(memory, timed)
        self.everything = Measure(self.chooser, group=self.group)

    @property
    def label(self) -> str:
        """What is measured, in words: "exact", "group of 8", "subset of 1/8"."""
        return {"group": f"group of {self.group}", "subset": f"subset of 1/{self.blocks}"}.get(self.name, self.name)

    def seed(self, seed: int) -> None:
        """Begin the draws anew."""
        self._random.seed(seed)

    def report_to(self, report: Report | None) -> None:
        """Have each choice of a method reported; see `Chooser`."""
        self.chooser.report = report
        self.everything = Measure(self.chooser, group=self.group)  # another one, so that earlier calls are not repeated

    def cut(self, examples: int) -> Cut:
        """Return how a batch is cut."""
        return Cut(min(self.blocks, examples), min(self.group, examples))

    def draw(self, examples: int) -> tuple[Measure, int]:
        """Return which of `examples` rows to measure now, and into how many blocks the batch was cut."""
        if examples < self.group and not self._warned:
            self._warned = True
            warnings.warn(
                f"A backward pass of {examples} examples is one group, smaller than group={self.group}: its norm is "
                "that of the gradient, as for LARS.",
                stacklevel=2,
            )
        blocks = self.cut(examples).blocks
        if blocks == 1:
            return self.everything, 1
        if where.is_capturing():
            raise UserError(CAPTURED)
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
                "or 'group' with torch.compile."
            )


def _check_options(name: str, fraction: float | None, group: int | None) -> None:
    if fraction is not None and group is not None:
        raise ValueError(
            f"fraction={fraction!r} and group={group!r} together: a batch is drawn from (estimator='subset', fraction) "
            "or cut into groups (estimator='group', group). Give one of them."
        )
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} is not a share of the batch: use a number above 0, up to 1.")
    if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
        raise ValueError(f"group={group!r} is not a number of examples: use a whole number above 0.")
    for option, value, owner in (("fraction", fraction, "subset"), ("group", group, "group")):
        if value is not None and name != owner:
            warnings.warn(f"{option} has no effect on estimator={name!r}; it is of {owner!r}.", stacklevel=4)
