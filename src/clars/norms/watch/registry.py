"""Numbers for what functions in C++ and compiled graphs cannot hold."""

from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from clars.norms.watch.accumulator import Accumulator


class Registry:
    """The accumulators there are, by the numbers under which functions in C++ and compiled graphs know them.

    There is one, `REGISTRY`, as those hold nothing but numbers. It keeps no accumulator alive.
    """

    def __init__(self) -> None:
        self._members: WeakValueDictionary[int, Accumulator] = WeakValueDictionary()
        self._numbers = count(1)

    def add(self, member: "Accumulator") -> int:
        """Take up an accumulator; return its number, which no other ever had."""
        number = next(self._numbers)
        self._members[number] = member
        return number

    def get(self, number: int) -> "Accumulator | None":
        """Return the accumulator of a number; None where it is gone."""
        return self._members.get(number)


REGISTRY = Registry()
