"""Bags of lookups: the sum, the mean or the greatest of the entries of a table that each example looks up."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import MethodType, SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.groups import number
from clars.norms.methods.method import slices
from clars.norms.methods.products import squared_norms
from clars.norms.rules.rule import Contribution, Find, Gradients, LayerCall, Measure, Rule
from clars.precision import wide

MODES = {"sum": 0, "mean": 1, "max": 2}  # torch's numbers


class Lookups(NamedTuple):
    """What B bags have looked up, n entries together.

    Attributes:
        indices: of the entries, [n].
        offsets: where each bag begins among them, [B].
        bags: which bag each belongs to, [n].
        counts: how many count in each bag, [B]; where `mode` is "sum", nothing.
        greatest: where `mode` is "max", which entry each number of the output comes from, [B, D].
        factors: what entries are multiplied by, [n]; None for 1.
    """

    indices: Tensor
    offsets: Tensor
    bags: Tensor
    counts: Tensor
    greatest: Tensor
    factors: Tensor | None


@dataclass(frozen=True, eq=False)
class EmbeddingBag(Rule):
    """Bags of entries of W [N, D], as x [B, D]: formed by torch, which then has the gradients of the factors.

    Gradients of the row `padding_idx` are left out.
    """

    lookups: Lookups
    mode: str
    padding_idx: int

    def forward(self, x, weight, bias):
        return x.clone(), self.lookups

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        indices, offsets, bags, counts, greatest, factors = lookups = Lookups(*saved)
        how = (len(weight), False, MODES[self.mode], False, factors, self.padding_idx)
        gradient = torch.ops.aten._embedding_bag_backward(gy, indices, offsets, bags, counts, greatest, *how)
        squares = None
        if measure is not None:
            squares = measure.of_groups(self._squares(gy.to(wide(gy.dtype)), lookups, len(weight), measure))
        return Gradients(gy if needs[0] else None, Contribution(gradient, squares), Contribution())

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        lookups = Lookups(*saved)
        gy = gy.to(wide(gy.dtype))
        if self.mode == "max":
            gy = gy.masked_fill(lookups.counts.unsqueeze(1) == 0, 0)
        values, bags, indices = self._looked_up(gy, lookups, slice(None))
        mine = (bags >= rows.start) & (bags < rows.stop)
        size = weight.numel() // values.shape[1]  # entries, or numbers for "max"
        groups = number(rows.stop - rows.start, group)
        place = (bags[mine].long() - rows.start).div(group, rounding_mode="floor") * size + indices[mine]
        found = values.new_zeros(groups * size, values.shape[1]).index_add_(0, place, values[mine])
        return found.view(groups, *weight.shape)

    def _squares(self, gy: Tensor, lookups: Lookups, entries: int, measure: Measure) -> Tensor:
        """Lookups of one entry in a bag, or in a group of bags, add before the norm is taken."""
        group = min(measure.group, len(gy))
        if self.mode == "max":
            gy = gy.masked_fill(lookups.counts.unsqueeze(1) == 0, 0)
        if group == 1 and self.mode == "max":  # from an entry each
            return squared_norms(gy)
        if group == 1:  # a bag has one output gradient
            factors = self._factors(lookups, gy.dtype).unsqueeze(1)
            return _joint_squares(factors, lookups.bags, lookups.indices, entries, len(gy)) * squared_norms(gy)
        groups = number(len(gy), group)
        memory = measure.memory or where.working_set(gy.device.type)
        each = 4 * max(len(gy), len(lookups.indices)) * gy.element_size()
        total = gy.new_zeros(groups)
        for columns in slices(gy.shape[1], each, memory):
            values, bags, indices = self._looked_up(gy[:, columns], lookups, columns)
            total += _joint_squares(values, bags // group, indices, entries * gy.shape[1], groups)
        return total

    def _looked_up(self, gy: Tensor, lookups: Lookups, columns: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients, and to which bag's lookup of what they belong: of rows, or for "max" of numbers."""
        if self.mode != "max":
            values = self._factors(lookups, gy.dtype).unsqueeze(1) * gy[lookups.bags]
            return values, lookups.bags, lookups.indices
        bag, column = (torch.arange(size, device=gy.device) for size in gy.shape)
        indices = lookups.greatest[:, columns] * len(column) + column
        return gy.reshape(-1, 1), bag.repeat_interleave(len(column)), indices.flatten()

    def _factors(self, lookups: Lookups, dtype: torch.dtype) -> Tensor:
        factors = torch.ones_like(lookups.indices, dtype=dtype) if lookups.factors is None else lookups.factors
        if self.mode == "mean":
            factors = 1 / lookups.counts.to(dtype)[lookups.bags]
        return factors.to(dtype).masked_fill(lookups.indices == self.padding_idx, 0)


def _joint_squares(values: Tensor, owners: Tensor, indices: Tensor, entries: int, count: int) -> Tensor:
    """Return for each of `count` owners the sum of squares [count] of its values [n, D], after those that it has for
    one index, of `entries`, are added up.
    """
    key = owners.long() * entries + indices.long()
    ordered = key.sort().values
    place = torch.searchsorted(ordered, key)  # the same for the same key
    sums = torch.zeros_like(values).index_add_(0, place, values)
    return values.new_zeros(count).index_add_(0, ordered // entries, squared_norms(sums))


def embedding_bag(
    find: Find,
    input,
    weight,
    offsets=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    mode="mean",
    sparse=False,
    per_sample_weights=None,
    include_last_offset=False,
    padding_idx=None,
) -> LayerCall | Tensor:
    """Stand for torch.nn.functional.embedding_bag: indices [B, L], or [n] with offsets; weight [N, D].

    A row of the indices is an example; with offsets a bag is.
    """
    refused = {
        "uses sparse=True": sparse,
        "uses scale_grad_by_freq=True": scale_grad_by_freq,
        "looks up nested indices": input.is_nested,
        "uses its parameter as per_sample_weights": find(per_sample_weights) is not None,
    }
    if any(refused.values()):
        what = next(each for each, is_so in refused.items() if is_so)
        raise UnsupportedLayerError(
            {(find(per_sample_weights) or find(weight)).layer: f"{what}; there is no rule for it."}
        )
    shapes = input.dim(), None if offsets is None else offsets.dim()
    weighted = per_sample_weights is not None
    if (
        shapes not in ((2, None), (1, 1))
        or weight.dim() != 2
        or mode not in MODES
        or (weighted and (mode != "sum" or per_sample_weights.shape != input.shape))
    ):  # torch tells what is wrong with it
        how = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights, include_last_offset)
        return F.embedding_bag(input, weight, offsets, *how, padding_idx)
    if offsets is None:
        offsets = torch.arange(0, input.numel(), input.shape[1], dtype=input.dtype, device=input.device)
    elif include_last_offset:
        offsets = offsets[:-1]
    indices, factors = input.flatten(), per_sample_weights.flatten() if weighted else None
    table = weight.detach()
    if max_norm is not None:
        torch.embedding_renorm_(table, indices, max_norm, norm_type)
    y, _, counts, greatest = torch.embedding_bag(
        table, indices, offsets, False, MODES[mode], False, factors, False, padding_idx
    )
    positions = torch.arange(len(indices), dtype=offsets.dtype, device=offsets.device)
    bags = torch.searchsorted(offsets, positions, right=True) - 1  # of empty ones at a place the last is not empty
    factors = factors.detach() if weighted else None
    lookups = Lookups(indices, offsets, bags.to(indices.dtype), counts, greatest, factors)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    return LayerCall(EmbeddingBag(lookups, mode, padding), y, weight, None, (find(weight), None))


def _told_without_methods(plain: Callable[[nn.Module], str]) -> Callable[[nn.Module], str]:
    """Let torch.nn.EmbeddingBag be printed while it is watched.

    It forms the text of all its attributes. That of a method bound to it, as its watched forward is, has its own again.
    """

    @wraps(plain)
    def extra_repr(self) -> str:
        own = {name: value for name, value in vars(self).items() if not isinstance(value, MethodType)}
        return plain(self if len(own) == len(vars(self)) else SimpleNamespace(**own))

    return extra_repr


nn.EmbeddingBag.extra_repr = _told_without_methods(nn.EmbeddingBag.extra_repr)

CALLS = {F.embedding_bag: embedding_bag}
