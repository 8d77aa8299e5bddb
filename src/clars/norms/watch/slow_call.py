"""Calls of any function with parameters: each example's contributions by a backward pass of that call alone."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from clars.native import where
from clars.norms.methods.groups import number
from clars.norms.owners import Pattern
from clars.norms.watch import contributing
from clars.norms.watch.expressions import Operand, parameters_of
from clars.norms.watch.measured_call import differentiable_once
from clars.norms.watch.slowness import Slowness
from clars.norms.watch.tensor_functions import name_of


def slowly(
    func: Callable,
    args: tuple,
    kwargs: dict,
    find: Callable[[Tensor], Operand | None],
    patterns: Sequence[Pattern | None],
    slowness: Slowness,
):
    """Make a call so that its backward pass measures what each example contributes to the operands in it.

    The contribution of an example is the vector-Jacobian product of the call with its outputs' gradients masked to the
    example: one such product for each of them.

    Args:
        func, args, kwargs: the call.
        find: tells which operand a tensor is.
        patterns: where each output has the examples; None of one that has no gradient.
        slowness: keeps what is measured so, and how long it takes.
    """
    flat, spec = tree_flatten((args, kwargs))
    at = [k for k, value in enumerate(flat) if isinstance(value, Tensor)]
    operands = tuple(find(flat[k]) for k in at)
    for parameter in (each for operand in operands for each in parameters_of(operand)):
        slowness.add(parameter.layer, name_of(func))
    form = []

    def call(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        values = list(flat)
        for k, tensor in zip(at, tensors):
            values[k] = tensor
        positional, named = tree_unflatten(values, spec)
        made, of_result = tree_flatten(func(*positional, **named))
        form[:] = [of_result]
        return tuple(made)

    made = _SlowCall.apply(call, operands, tuple(patterns), slowness, *(flat[k] for k in at))
    return tree_unflatten(made, form[0])


class _SlowCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, operands, patterns, slowness, *tensors):
        contributing.start(ctx, operands, ())
        ctx.patterns, ctx.slowness = patterns, slowness
        with torch.enable_grad():
            ctx.inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
            ctx.outputs = call(ctx.inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(each for each in ctx.outputs if not each.requires_grad))
        ctx.save_for_backward(tensors[0].new_empty(0))  # so that a checkpoint notices where it is not recomputed so
        return tuple(output.detach() for output in ctx.outputs)

    @staticmethod
    @differentiable_once
    def backward(ctx, *gradients):
        ctx.saved_tensors  # noqa: B018 - where a checkpoint recomputes, it does so now
        there = [k for k, gradient in enumerate(gradients) if gradient is not None and ctx.outputs[k].requires_grad]
        outputs, given = [ctx.outputs[k] for k in there], [gradients[k] for k in there]
        wanted = [tensor for tensor in ctx.inputs if tensor.requires_grad]
        own = dict(zip(map(id, wanted), torch.autograd.grad(outputs, wanted, given, True, allow_unused=True)))
        patterns = [ctx.patterns[k] for k in there]
        if there:
            began = time.perf_counter()
            _measure(ctx, outputs, given, patterns)
            ctx.slowness.took(time.perf_counter() - began)
        return None, None, None, None, *(own.get(id(tensor)) for tensor in ctx.inputs)


def _measure(ctx, outputs: list[Tensor], gradients: list[Tensor], patterns: list[Pattern]) -> None:
    examples = patterns[0].examples(outputs[0].shape)
    asked = contributing.enter(ctx, examples, [node for node, _ in ctx.next_functions])
    if not asked.accumulators:
        return
    sought = [k for k, operand in enumerate(ctx.operands) if operand is not None]
    made: dict[tuple[int, int], list[Tensor]] = {}  # of one piece

    def shares(rows: slice, k: int) -> Tensor:
        key = (rows.start, rows.stop)
        if key not in made:
            made.clear()
            masked = [
                _masked(gradient, pattern, rows, asked.measure.group) for gradient, pattern in zip(gradients, patterns)
            ]
            made[key] = _products(outputs, [ctx.inputs[each] for each in sought], masked)
        return made[key][sought.index(k)]

    with where.without_autocast(gradients[0]):
        contributing.add_shares(ctx.operands, shares, asked, examples, at_once=True)


def _masked(gradient: Tensor, pattern: Pattern, rows: slice, group: int) -> Tensor:
    """Return the gradient once for each group of examples, [groups, *shape], zero but for what is the group's."""
    apart = gradient.unflatten(pattern.dim, (pattern.outer, -1, pattern.inner)).movedim(pattern.dim + 1, 0)
    groups = number(rows.stop - rows.start, group)
    found = apart.new_zeros(groups, *apart.shape)
    for g in range(groups):
        some = slice(rows.start + g * group, min(rows.start + (g + 1) * group, rows.stop))
        found[g, some] = apart[some]
    return found.movedim(1, pattern.dim + 2).flatten(pattern.dim + 1, pattern.dim + 3)


def _products(outputs: list[Tensor], inputs: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """Return the vector-Jacobian products [groups, *shape] of the inputs for gradients [groups, *shape]."""
    try:
        found = torch.autograd.grad(outputs, inputs, gradients, True, allow_unused=True, is_grads_batched=True)
    except RuntimeError:  # of an operator that cannot be batched
        each = [torch.autograd.grad(outputs, inputs, some, True, allow_unused=True) for some in zip(*gradients)]
        found = [None if some[0] is None else torch.stack(some) for some in zip(*each)]
    count = len(gradients[0])
    return [x.new_zeros(count, *x.shape) if value is None else value.to_dense() for x, value in zip(inputs, found)]
