"""Gradient and per-example squared norms of a matrix that multiplies every position of its input."""

import torch
from torch import Tensor

from clars.norms.rule import Contribution
from clars.norms.strategy import chunks, prefers_gram, squared_norms, wide


def matrix_contribution(gy: Tensor, x: Tensor) -> Contribution:
    """Return the gradient [P, D] of a matrix with output gradients gy [B, T, P] and inputs x [B, T, D]."""
    examples, positions, outputs = gy.shape
    inputs = x.shape[2]
    if positions == 1 or prefers_gram(positions, inputs, outputs):
        gradient = gy.flatten(0, 1).T @ x.flatten(0, 1)
        return Contribution(gradient, gram_squares(gy, x))
    gradient, squares = None, []
    per_example = gy.element_size() * (positions * (inputs + outputs) + inputs * outputs)
    for piece in chunks(examples, per_example, gy.device):
        products = torch.bmm(gy[piece].transpose(1, 2), x[piece])
        squares.append(squared_norms(products))
        gradient = add_examples(gradient, products)
    return Contribution(gradient.to(gy.dtype), torch.cat(squares))


def add_examples(total: Tensor | None, products: Tensor) -> Tensor:
    """Add products [b, ...] over their examples to `total`, in float32 at least; None is an empty sum."""
    dtype = wide(products.dtype)
    part = products.sum(0, dtype=dtype) if len(products) > 1 else products[0].to(dtype)
    return part if total is None else total.add_(part)


def gram_squares(gy: Tensor, x: Tensor) -> Tensor:
    """Return ||gy_i^T x_i||^2 for each example i of gy [B, T, P] and x [B, T, D], without forming the products."""
    examples, positions, outputs = gy.shape
    if positions == 1:
        return squared_norms(gy) * squared_norms(x)
    gy, x = gy.to(wide(gy.dtype)), x.to(wide(x.dtype))
    per_example = gy.element_size() * positions * (outputs + x.shape[2] + 2 * positions)
    squares = [
        (torch.bmm(gy[piece], gy[piece].transpose(1, 2)) * torch.bmm(x[piece], x[piece].transpose(1, 2))).sum((1, 2))
        for piece in chunks(examples, per_example, gy.device)
    ]
    return torch.cat(squares).clamp_min(0)


def bias_contribution(gy: Tensor, positions: tuple[int, ...]) -> Contribution:
    """Return the gradient of an added vector: gy [B, ...] summed over `positions` and examples."""
    per_example = gy.sum(positions, dtype=wide(gy.dtype)) if positions else gy
    return Contribution(per_example.sum(0).to(gy.dtype), squared_norms(per_example))
