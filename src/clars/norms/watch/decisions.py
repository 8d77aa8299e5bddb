"""What was found out about calls with parameters in a forward that was followed, for the forwards after it."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from clars.norms.owners import PLAIN, Pattern

MOST_SIZES = 1000  # of inputs, before what was found for all of them is forgotten


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
        at: which of the call's other tensors the examples were found in; -1 where the rule itself tells, of bags.
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
        if self.way is Way.EXPRESSION or self.at < 0:
            return True
        if self.at >= len(others) or examples is None:
            return False
        shape = others[self.at].shape
        return self.pattern.fits(shape, examples) and without(shape, self.pattern.dim) == self.rest


def without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    """Return a shape without one of its dimensions."""
    return (*shape[:dim], *shape[dim + 1 :])


class Decisions:
    """The decisions of a model, by the inputs' sizes but for the batch's, and by the call.

    A call is known by its function, whose parameters are in it, and the how-manieth such call it is.
    """

    def __init__(self) -> None:
        self._of: dict[Hashable, dict[Hashable, list[Decision]]] = {}
        self._present: dict[Hashable, list[Decision]] = {}
        self._assumed: dict[Hashable, Decision] = {}
        self._stale: set[Hashable] = set()
        self._signature: Hashable = None

    def begin(self, signature: Hashable) -> bool:
        """Begin a forward with inputs of such sizes; tell whether one has been followed before."""
        if len(self._of) > MOST_SIZES:
            self._of.clear()
        known = signature in self._of and signature not in self._stale
        self._stale.discard(signature)
        self._signature = signature
        self._present = self._of.setdefault(signature, {})
        return known

    def forget(self) -> None:
        """Have all forwards followed anew; what was found stays true."""
        self._stale = set(self._of)

    def failed(self) -> None:
        """Have forwards like the one that was followed last followed anew, as it did not come to its end."""
        self._stale.add(self._signature)

    def assume(self, call: Hashable, decision: Decision) -> None:
        """Note how a call is taken to be made that was not there when its forward was followed; follow the next."""
        self._assumed[call] = decision
        self.forget()

    def contradicts(self, call: Hashable, decision: Decision) -> bool:
        """Tell whether a call is made otherwise than was assumed in a forward before."""
        assumed = self._assumed.pop(call, decision)
        return (assumed.way, assumed.pattern) != (decision.way, decision.pattern)

    def add(self, call: Hashable, count: int | None, decision: Decision) -> None:
        """Note how the how-manieth of calls that are alike is made; None where others are not counted like it."""
        for key in ((call, count), call):
            found = self._present.setdefault(key, [])
            if decision not in found:
                found.append(decision)

    def of(self, call: Hashable, count: int, others: Sequence[Tensor], examples: int) -> Decision | None:
        """Return how a call was found to be made; None where that is not known."""
        for key in ((call, count), call):
            found = [decision for decision in self._present.get(key, ()) if decision.fits(others, examples)]
            if len(found) == 1:
                return found[0]
        return None

    def like(self, call: Hashable, others: Sequence[Tensor], examples: int) -> Decision | None:
        """Return how calls that differ in other sizes alone were made, where that leaves one way."""
        found = {
            each for present in self._of.values() for each in present.get(call, ()) if each.way is not Way.EXPRESSION
        }
        if len({(each.way, each.at, each.pattern, each.outputs, each.dimensions) for each in found}) != 1:
            return None
        decision = found.pop()
        if not 0 <= decision.at < len(others) or not decision.pattern.fits(others[decision.at].shape, examples):
            return None
        rest = without(others[decision.at].shape, decision.pattern.dim)
        return None if any(size % examples == 0 for size in rest) else replace(decision, rest=rest)

    def of_recomputed(self, call: Hashable, others: Sequence[Tensor], examples: int) -> Decision | None:
        """Do the same for a part that is recomputed, of any forward before, where calls are counted anew.

        What nothing of the batch enters can be told from others by its gradients.
        """
        every = [decision for present in self._of.values() for decision in present.get(call, ())]
        found = list(dict.fromkeys(decision for decision in every if decision.fits(others, examples)))
        expressions = [decision for decision in found if decision.way is Way.EXPRESSION]
        if expressions and len(found) > 1:
            differentiated = any(value.requires_grad for value in others)
            found = [each for each in found if (each.way is Way.EXPRESSION) != differentiated]
        return found[0] if len(found) == 1 else None


class Counted:
    """Counts the calls of one forward that are alike."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()

    def __call__(self, call: Hashable) -> int:
        """Return the how-manieth such call this is."""
        self._counts[call] += 1
        return self._counts[call]
