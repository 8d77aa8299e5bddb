"""Calls that are made at every step with the same arguments but for the input: what they led to is led to at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from clars.norms.methods.measure import Measure
from clars.norms.rules.rule import LayerCall
from clars.norms.watch.backward_pass import BackwardPass
from clars.norms.watch.measured_call import NativeCall

# Objects of these kinds stay what they are; a parameter's flag is compared, and a layer in C++ compares sizes.
LASTING = (Tensor, tuple, int, float, str, type(None))


class RepeatedCall(NamedTuple):
    """A function's call that a layer in C++ made. `others` are its arguments but for the first, by `ids` the same."""

    function: Callable
    others: Sequence
    ids: tuple[int, ...]
    keywords: tuple[str, ...]
    differentiated: tuple[bool, bool]
    native: NativeCall
    current: BackwardPass
    measure: Measure
    batch: int | None

    def several(self) -> bool:
        """Tell whether an earlier use waits for its backward pass, so that this one is another of the same pass."""
        return any(each.several or each.waits() for each in self.native.accumulators)

    def again(self, function: Callable, values: Sequence, keywords: tuple[str, ...]) -> Tensor | None:
        """Return the output where this is the same call again, with any input; None where all must be looked at anew.

        Long expressions and few calls: the functions that would read better are not in the cache when this runs.
        """
        current, (weight, bias, *_) = self.current, self.native.arguments
        if (
            function is self.function
            and tuple(map(id, values[1:])) == self.ids
            and keywords == self.keywords
            and (weight.requires_grad, bias is not None and bias.requires_grad) == self.differentiated
            and current.estimator.everything is self.measure
            and current.batch == self.batch
            and not self.several()
        ):
            return self.native(values[0])
        return None


def recognisable(
    function: Callable,
    values: Sequence,
    keywords: tuple[str, ...],
    call: LayerCall,
    native: NativeCall,
) -> RepeatedCall | None:
    """Return how to recognise a call; None where it cannot be told by its arguments.

    Args:
        function: the function of torch.
        values: its arguments, those by keyword last.
        keywords: the names of the latter.
        call, native: what it led to.
    """
    others = values[1:]
    if call.x is not values[0] or not all(isinstance(value, LASTING) for value in others):
        return None
    if not any(call.weight is value for value in others):  # a view, which is another one at each call
        return None
    owned = zip((call.weight, call.bias), call.parameters)
    if any(value is not None and value.requires_grad and parameter is None for value, parameter in owned):
        return None  # somebody may own it at a later call
    current = native.accumulators[0].current
    if not current.shortcuts.repeated_calls:
        return None
    return RepeatedCall(
        function,
        others,
        tuple(map(id, others)),
        keywords,
        (call.weight.requires_grad, call.bias is not None and call.bias.requires_grad),
        native,
        current,
        current.estimator.everything,
        current.batch,
    )
