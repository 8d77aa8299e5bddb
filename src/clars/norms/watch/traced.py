"""Measured calls as torch.compile sees them.

Its front end (dynamo) would follow each call through all of the tracker's Python, and compile it anew whenever an
object in there changes. So a measured call is one function in the graph, given tensors and numbers alone; what it does
is seen by the stage behind, which knows tensors only (AOTAutograd).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clars.norms.watch.accumulator import ACCOUNTS, Account
from clars.norms.rules.functions import RULES
from clars.norms.watch.measured_call import Call, spread, tapped

FUNCTIONS = list(RULES)
INDICES = {function: index for index, function in enumerate(FUNCTIONS)}


class TracedPart(NamedTuple):
    """Stands for a tracked parameter: the account of its layer, and the leaf that takes the sums out of the graph."""

    account: Account
    leaf: Tensor


def call(index: int, tracked: Sequence[tuple[int, str, int]], leaves: Sequence[Tensor], args: tuple, kwargs: dict):
    """Make a call of a function that has a rule.

    Args:
        index: of the function, in FUNCTIONS.
        tracked: for each tracked parameter its position among the arguments, those by keyword last, the number of its
            account, as text, and that of its leaf.
        leaves: of the accounts.
        args, kwargs: of the function.
    """
    values = (*args, *kwargs.values())
    parts = {id(values[at]): TracedPart(ACCOUNTS[int(number)], leaves[leaf]) for at, number, leaf in tracked}
    result = RULES[FUNCTIONS[index]](lambda tensor: parts.get(id(tensor)), *args, **kwargs)
    return tapped(result)[0] if isinstance(result, Call) else result


def expand(parameter: Tensor, shape: Sequence[int], number: str, leaf: Tensor) -> Tensor:
    """Expand a tracked parameter, by the number of its account, to a shape [B, ...]."""
    return spread(torch.Size(shape), [parameter], [TracedPart(ACCOUNTS[int(number)], leaf)])[0]


def keep_whole() -> None:
    """Have torch.compile keep these functions whole."""
    torch.compiler.allow_in_graph([call, expand])
