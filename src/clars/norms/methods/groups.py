"""Groups of consecutive examples, whose contributions are summed before the norm is taken. The last may be smaller."""

import torch
from torch import Tensor


def number(examples: int, group: int) -> int:
    """Return how many groups of `group` so many examples make up."""
    return -(-examples // group)


def summed(terms: Tensor, group: int) -> Tensor:
    """Return the sums [number of groups, ...] over each group of terms [B, ...]."""
    group = min(group, len(terms))
    if group <= 1:
        return terms
    whole = len(terms) // group * group
    sums = terms[:whole].unflatten(0, (-1, group)).sum(1)
    return sums if whole == len(terms) else torch.cat([sums, terms[whole:].sum(0, keepdim=True)])


def merged(x: Tensor, group: int) -> Tensor:
    """Return x [b, T, ...] with the positions of each group as one example's, [number of groups, group * T, ...].

    b is a whole number of groups, or one smaller group.
    """
    return x if group == 1 else x.reshape(max(1, len(x) // group), -1, *x.shape[2:])
