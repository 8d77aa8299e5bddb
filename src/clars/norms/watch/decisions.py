"""What was found out about calls with parameters in a forward that was followed, for the forwards after it."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from clars.norms.owners import PLAIN, Pattern


class Way(Enum):
    """How a call with parameters, or with what is computed from them, is made."""

    EXPRESSION = "nothing of the batch enters it"
    LAYER = "it is a layer's, and has a rule"
    MEETING = "a batch is met: operands are expanded over the examples"
    SLOW = "any other"


@dataclass(frozen=True)
class Decision:
    """How a call is made, and where the examples are in it.

    Attributes:
        way: how.
        at: which of the call's other tensors the examples were found in.
        pattern: where they are there.
        rest: that tensor's shape without the dimension that has the examples.
        outputs: where they are in each output; None of one that depends on none.
        dimensions: of the first output.
    """

    way: Way
    at: int = 0
    pattern: Pattern = PLAIN
    rest: tuple[int, ...] = ()
    outputs: tuple[Pattern | None, ...] = ()
    dimensions: int = 0

    def fits(self, others: Sequence[Tensor], examples: int | None) -> bool:
        """Tell whether a call with such other tensors than parameters can be made so."""
        if self.way is Way.EXPRESSION:
            return True
        if self.at >= len(others) or examples is None:
            return False
        shape = others[self.at].shape
        return self.pattern.fits(shape, examples) and without(shape, self.pattern.dim) == self.rest


def without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """Return a shape without one of its dimensions."""
    return (*shape[:dim], *shape[dim + 1 :])


class Decisions:
    """The decisions of a model, by the call: its function, whose parameters, and the how-manieth such call.

    Inputs of another size may lead to other decisions, so that a forward is followed for each (see `is_known`); a batch
    of another number of examples does not.
    """

    def __init__(self) -> None:
        self._of: dict[Hashable, list[Decision]] = {}
        self._known: set[Hashable] = set()

    def is_known(self, signature: Hashable) -> bool:
        """Tell whether a forward with such inputs has been followed."""
        return signature in self._known

    def note(self, signature: Hashable) -> None:
        """Note that a forward with such inputs has been followed."""
        self._known.add(signature)

    def forget(self) -> None:
        """Have all forwards followed anew."""
        self._known.clear()

    def add(self, call: Hashable, count: int, decision: Decision) -> None:
        """Note how the how-manieth of calls that are alike is made."""
        for key in ((call, count), call):
            found = self._of.setdefault(key, [])
            if decision in found:
                found.remove(decision)
            found.insert(0, decision)

    def of(self, call: Hashable, count: int) -> Iterator[Decision]:
        """Yield what was decided of a call, the likeliest first: where a part is recomputed, counts are others."""
        yield from self._of.get((call, count), ())
        yield from self._of.get(call, ())


class Counted:
    """Counts the calls of one forward that are alike."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()

    def __call__(self, call: Hashable) -> int:
        """Return the how-manieth such call this is."""
        self._counts[call] += 1
        return self._counts[call]
