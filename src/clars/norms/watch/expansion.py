"""Parameters, and what is computed from them alone, where they meet the examples of a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Size, Tensor

from clars.native import where
from clars.norms.methods.groups import summed
from clars.norms.owners import Pattern
from clars.norms.watch import contributing
from clars.norms.watch.expressions import Operand
from clars.norms.watch.measured_call import differentiable_once


class Target(NamedTuple):
    """A tensor that meets a batch: which operand it is, and to what shape it is expanded for it.

    `pattern` tells where that shape has the examples; None says that all of it is the only example's. Along its
    dimension the tensor has one element, the same for all examples, or as many as the shape: then each example has
    elements of its own.
    """

    tensor: Tensor
    operand: Operand | None
    shape: Size
    pattern: Pattern | None

    @property
    def examples(self) -> int:
        """How many examples it meets."""
        return 1 if self.pattern is None else self.pattern.examples(self.shape)

    @property
    def aligned(self) -> Size:
        """The tensor's own shape with as many dimensions as the one it is expanded to."""
        return Size((1,) * (len(self.shape) - self.tensor.dim()) + tuple(self.tensor.shape))


def met(tensor: Tensor, operand: Operand | None, dimensions: int, pattern: Pattern, examples: int) -> Target:
    """Return how a tensor meets a batch in a result of so many dimensions: it is expanded over the examples alone."""
    if examples == 1:
        return Target(tensor, operand, tensor.shape, None)
    aligned = list((1,) * (dimensions - tensor.dim()) + tuple(tensor.shape))
    aligned[pattern.dim] = examples * pattern.rows
    return Target(tensor, operand, Size(aligned), pattern)


def expanded(targets: Sequence[Target]) -> tuple[Tensor, ...]:
    """Expand each tensor to its shape, so that each example's own gradient arrives and can be measured.

    Raises:
        UnsupportedLayerError: there are not as many examples as the model's input has.
    """
    operands = [target.operand for target in targets]
    contributing.require_batch(operands, targets[0].examples)
    return _Expansion.apply(tuple(targets), *(target.tensor for target in targets), *contributing.leaves_of(operands))


class _Expansion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, targets, *tensors_and_leaves):
        tensors, leaves = tensors_and_leaves[: len(targets)], tensors_and_leaves[len(targets) :]
        contributing.start(ctx, [target.operand for target in targets], leaves)
        ctx.examples = targets[0].examples
        ctx.targets = [(target.shape, target.aligned, target.pattern, target.tensor.shape) for target in targets]
        return tuple(tensor.expand(target.shape) for tensor, target in zip(tensors, targets))

    @staticmethod
    @differentiable_once
    def backward(ctx, *gradients):
        examples = ctx.examples
        nodes = [] if ctx.compiled else [node for node, _ in ctx.next_functions]
        asked = contributing.enter(ctx, examples, nodes)
        leaves: list = []
        with where.without_autocast(gradients[0]):
            if ctx.compiled or contributing.are_simple(ctx.operands):
                rows = asked.measure.rows
                squares = [asked.measure.squared(_each(g, *how, rows)) for g, how in zip(gradients, ctx.targets)]
                leaves = contributing.add_squares(ctx, squares, asked, examples)
            elif asked.accumulators:

                def shares(piece: slice, k: int) -> Tensor:
                    return summed(_each(gradients[k], *ctx.targets[k], piece), asked.measure.group)

                contributing.add_shares(ctx.operands, shares, asked, examples)
            own = [g.sum_to_size(how[1]).reshape(how[3]) for g, how in zip(gradients, ctx.targets)]
        return None, *own, *leaves


def _each(gradient: Tensor, shape: Size, aligned: Size, pattern: Pattern | None, own: Size, rows: slice) -> Tensor:
    """Return the gradients [b, *own] of some of the examples, which flow through their parts of the expanded tensor."""
    if pattern is None:
        return gradient.unsqueeze(0)
    each = pattern.each(gradient)[rows]
    if aligned[pattern.dim] == 1:
        return each.sum_to_size(len(each), *aligned).reshape(len(each), *own)
    examples, (first, last, _) = pattern.examples(shape), rows.indices(pattern.examples(shape))
    apart = each.unflatten(pattern.dim + 1, (pattern.outer, 1, pattern.inner))
    mine = torch.eye(examples, dtype=torch.bool, device=gradient.device)[first:last]
    mine = mine.view(last - first, *[1] * pattern.dim, 1, examples, *[1] * (len(shape) - pattern.dim))
    masked = torch.where(mine, apart, 0).flatten(pattern.dim + 1, pattern.dim + 3)
    return masked.sum_to_size(len(each), *aligned).reshape(len(each), *own)
