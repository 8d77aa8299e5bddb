"""Calls that are made at every step with the same arguments but for the input: what they led to is led to at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from clars.norms.watch.backward_pass import BackwardPass
from clars.norms.rules.rule import Measure
from clars.norms.watch.measured_call import Call, Compiled

# Objects of these kinds stay what they are; a parameter's flag is compared, and a compiled layer compares sizes.
LASTING = (Tensor, tuple, int, float, str, type(None))


class Known(NamedTuple):
    """A function's call that a compiled layer made. `others` are its arguments but for the first, by `ids` the same."""

    function: Callable
    others: Sequence
    ids: tuple[int, ...]
    keywords: tuple[str, ...]
    differentiated: tuple[bool, bool]
    compiled: Compiled
    current: BackwardPass
    measure: Measure
    rows: int

    def again(self, function: Callable, values: Sequence, keywords: tuple[str, ...]) -> Tensor | None:
        """Return the output where this is the same call again, with any input; None where all must be looked at anew.

        Long expressions and few calls: the functions that would read better are not in the cache when this runs.
        """
        current, (layer, arguments) = self.current, self.compiled
        weight, bias, *_ = arguments
        if (
            function is self.function
            and tuple(map(id, values[1:])) == self.ids
            and keywords == self.keywords
            and (weight.requires_grad, bias is not None and bias.requires_grad) == self.differentiated
            and current.estimator.whole is self.measure
            and (not current.batch_sizes or self.rows in current.batch_sizes)
        ):
            return layer.operator(values[0], *arguments)
        return None


def known(
    function: Callable, values: Sequence, keywords: tuple[str, ...], call: Call, compiled: Compiled
) -> Known | None:
    """Return how to recognise a call; None where it cannot be told by its arguments.

    Args:
        function: the function of torch.
        values: its arguments, those by keyword last.
        keywords: the names of the latter.
        call, compiled: what it led to.
    """
    others = values[1:]
    if call.x is not values[0] or not all(isinstance(value, LASTING) for value in others):
        return None
    owned = zip((call.weight, call.bias), call.parts)
    if any(value is not None and value.requires_grad and part is None for value, part in owned):
        return None  # somebody may own it at a later call
    current = next(part for part in call.parts if part is not None).account.current
    return Known(
        function,
        others,
        tuple(map(id, others)),
        keywords,
        (call.weight.requires_grad, call.bias is not None and call.bias.requires_grad),
        compiled,
        current,
        current.estimator.whole,
        len(call.x),
    )
