"""Lookup tables."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.method import slices
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
        return Gradients(
            None,
            Contribution(gradient, self._squares(gy[measure.rows], x[measure.rows], measure.memory)),
            Contribution(),
        )

    def _squares(self, gy: Tensor, indices: Tensor, memory: int | None) -> Tensor:
        """Rows of one example that look up the same entry add before the norm is taken: a Gram sum over equal rows."""
        indices = indices.reshape(len(indices), -1)
        rows = gy.reshape(*indices.shape, -1).to(wide(gy.dtype))
        rows = rows.masked_fill((indices == self.padding_idx).unsqueeze(2), 0)
        squares = []
        per_example = rows.element_size() * (rows[0].numel() + 2 * indices.shape[1] ** 2)
        memory = memory or where.working_set(gy.device.type)
        for piece in slices(len(indices), per_example, memory):
            same = indices[piece].unsqueeze(2) == indices[piece].unsqueeze(1)
            gram = torch.bmm(rows[piece], rows[piece].transpose(1, 2))
            squares.append(gram.masked_fill_(~same, 0).sum((1, 2)))
        return torch.cat(squares).clamp_min(0)


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
