"""Lookup tables."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.groups import merged, number
from clars.norms.methods.method import slices
from clars.norms.methods.products import squared_norms
from clars.norms.rules.rule import Contribution, Find, Gradients, LayerCall, Measure, Rule, need_batch
from clars.precision import wide


@dataclass(frozen=True)
class Embedding(Rule):
    """y = W[indices] for indices [B, ...] and W [N, D]; gradients of the row `padding_idx` are left out."""

    padding_idx: int
    max_norm: float | None
    norm_type: float

    def forward(self, x, weight, bias):
        padding = self.padding_idx if self.padding_idx >= 0 else None
        return F.embedding(x, weight, padding, self.max_norm, self.norm_type), ()

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        gradient = torch.ops.aten.embedding_dense_backward(gy, x, len(weight), self.padding_idx, False)
        squares = None if measure is None else self._squares(gy[measure.rows], x[measure.rows], measure)
        return Gradients(None, Contribution(gradient, squares), Contribution())

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        gy, indices = gy[rows], x[rows]
        group = min(group, len(indices))
        of_group = torch.arange(len(indices), device=x.device).div(group, rounding_mode="floor")
        place = of_group.view(-1, *[1] * (indices.dim() - 1)) * len(weight) + indices
        values = gy.masked_fill((indices == self.padding_idx).unsqueeze(-1), 0).to(wide(gy.dtype))
        found = values.new_zeros(number(len(indices), group) * len(weight), weight.shape[1])
        found.index_add_(0, place.flatten(), values.reshape(-1, weight.shape[1]))
        return found.view(-1, *weight.shape)

    def leading(self, x: Tensor) -> int:
        return x.dim()

    def _squares(self, gy: Tensor, indices: Tensor, measure: Measure) -> Tensor:
        """Rows of one example, or of one group, that look up the same entry add before the norm is taken."""
        group = min(measure.group, len(indices))
        indices = indices.reshape(len(indices), -1)
        rows = gy.reshape(*indices.shape, -1)
        per_group = 3 * group * rows[0].numel() * wide(gy.dtype).itemsize
        memory = measure.memory or where.working_set(gy.device.type)
        squares = []
        for piece in slices(len(indices), per_group, memory, group):
            entries = merged(indices[piece], group)
            values = (
                merged(rows[piece], group).to(wide(gy.dtype)).masked_fill((entries == self.padding_idx)[..., None], 0)
            )
            place = torch.searchsorted(entries.sort(1).values, entries)  # the same for the same entry
            first = torch.arange(len(entries), device=place.device).unsqueeze(1) * entries.shape[1]
            sums = torch.zeros_like(values).flatten(0, 1)  # index_add_ has a way that repeats to the bit, if one asks
            sums.index_add_(0, (first + place).flatten(), values.flatten(0, 1))
            squares.append(squared_norms(sums.view_as(values)))
        return torch.cat(squares)


def embedding(
    find: Find,
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
) -> LayerCall:
    """Stand for torch.nn.functional.embedding: indices [B, ...], weight [N, D]."""
    need_batch(find, weight, None, input, 1)
    if scale_grad_by_freq or sparse:
        option = "sparse" if sparse else "scale_grad_by_freq"
        raise UnsupportedLayerError({find(weight).layer: f"uses {option}=True, for which there is no rule."})
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    rule = Embedding(-1 if padding_idx is None else padding_idx, max_norm, norm_type)
    return LayerCall(rule, input, weight, None, (find(weight), None))


CALLS = {F.embedding: embedding}
