"""The autograd functions that stand in for a layer's own: same values, and the norms on the way back."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from clars import native
from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.measure import Measure
from clars.norms.rules.rule import LayerCall
from clars.norms.watch import booking as booking  # its operators are what layers in C++ call
from clars.norms.watch.accumulator import Accumulator, sums_of
from clars.norms.watch.tracked_parameter import TrackedParameter, arrives

TWICE = (
    "A layer that clars measures cannot be differentiated twice (a gradient penalty in the loss?). Take the tracking "
    "away for it: norms.remove(), with optimizer.norms as norms."
)


class NativeCall(NamedTuple):
    """The call of a layer in C++: its operator takes the input and then these arguments.

    It is as good for the next call with tensors of the same sizes. For other sizes, and in circumstances that need
    other means, the operator returns None.
    """

    layer: native.NativeLayer
    arguments: tuple  # weight, bias, the layer's number and those of two accumulators


def measured(call: LayerCall) -> tuple[Tensor, NativeCall | None]:
    """Make the call so that its backward pass adds the norms of weight and bias to their two accumulators.

    Returns the output, and how it came about if a layer in C++ made it.

    Raises:
        UnsupportedLayerError: the input has not as many rows as the model's.
    """
    rule, x, weight, bias, parameters, cast = call
    accumulators, leaves = _accumulators(parameters, x.shape[0]), _leaves(parameters)
    layer = None if leaves else _native_layer(call, accumulators[0].current.estimator)
    if layer is not None:
        numbers = (0 if parameter is None else parameter.accumulator.number for parameter in parameters)
        arguments = (weight, bias, layer.number, *numbers)
        y = layer.operator(x, *arguments)
        if y is not None:
            return y, NativeCall(layer, arguments)
    return _MeasuredCall.apply(rule, parameters, *cast(x, weight, bias), *leaves), None


def _native_layer(call: LayerCall, estimator) -> native.NativeLayer | None:
    return call.rule.native_layer(call.x, call.weight, estimator.chooser, estimator.cut(len(call.x)))


def expanded(
    shape: torch.Size, tensors: Sequence[Tensor], parameters: Sequence[TrackedParameter | None]
) -> tuple[Tensor, ...]:
    """Expand each tensor to `shape` [B, ...], so that each example's own gradient arrives and can be measured.

    Args:
        shape: its first dimension is the batch.
        tensors: to be expanded.
        parameters: which tracked parameters they are.
    """
    _accumulators(parameters, shape[0] if shape else 1)
    return _Expansion.apply(shape, tuple(parameters), len(tensors), *tensors, *_leaves(parameters))


def _accumulators(parameters: Sequence[TrackedParameter | None], rows: int) -> list[Accumulator]:
    """Return the accumulators concerned, each once, after a check that `rows` can be the batch."""
    accumulators: list[Accumulator] = []
    for parameter in parameters:
        if parameter is not None and parameter.accumulator not in accumulators:
            if problem := parameter.accumulator.current.problem_of(rows):
                raise UnsupportedLayerError({parameter.layer: problem})
            accumulators.append(parameter.accumulator)
    return accumulators


def _leaves(parameters: Sequence[TrackedParameter | None]) -> list[Tensor]:
    """Return the tensors by whose gradients the sums of a compiled backward pass leave it; otherwise none."""
    leaves = {each.accumulator: each.leaf for each in parameters if each is not None and each.leaf is not None}
    for accumulator in leaves:
        accumulator.current.estimator.without_draw()
    return list(leaves.values())


def _start(ctx, parameters: Sequence[TrackedParameter | None], leaves: Sequence) -> None:
    ctx.parameters = parameters
    ctx.spent = False
    ctx.compiled = len(leaves) > 0
    if not ctx.compiled:
        ctx.outer_pass = torch._C._current_graph_task_id()  # not -1: recomputed inside a backward pass


def _nodes(ctx) -> list[Node | None]:
    """Return where the gradients of the function's tensors go, in their order; of a compiled one nobody asks."""
    return [] if ctx.compiled else [node for node, _ in ctx.next_functions]


def _enter(ctx, examples: int, nodes: Sequence[Node | None]) -> tuple[Measure, list[Accumulator]]:
    """Return what to measure in this backward pass, and the accumulators to add it to.

    A compiled one is traced once, so it can check nothing.

    Args:
        ctx: of the autograd function.
        examples: how many rows it saw.
        nodes: where the gradients of the parameters go.
    """
    accumulators: list[Accumulator] = []
    if ctx.compiled:
        ctx.arriving = [True] * len(ctx.parameters)
        for parameter in ctx.parameters:
            if parameter is not None and parameter.accumulator not in accumulators:
                accumulators.append(parameter.accumulator)
        return accumulators[0].current.estimator.without_draw(), accumulators
    # autograd's number of the pass under way, or of the one that recomputed the forward
    number = ctx.outer_pass if ctx.outer_pass != -1 else torch._C._current_graph_task_id()
    ctx.arriving = [parameter is not None and arrives(node) for parameter, node in zip(ctx.parameters, nodes)]
    asked: list[Accumulator] = []
    for parameter in compress(ctx.parameters, ctx.arriving):
        if parameter.accumulator not in asked:
            asked.append(parameter.accumulator)
            if parameter.accumulator.enter(number, examples, ctx.spent):
                accumulators.append(parameter.accumulator)
    ctx.spent = ctx.spent or bool(asked)
    if not accumulators:
        some = next(parameter for parameter in ctx.parameters if parameter is not None)
        return some.accumulator.current.estimator.everything, accumulators
    return accumulators[0].current.measure._replace(layer=accumulators[0].layer), accumulators


def _add(
    ctx, squares: Sequence[Tensor | None], accumulators: Sequence[Accumulator], examples: int, measure: Measure
) -> list[Tensor | None]:
    """Add to each accumulator the joint squares of its parameters; return the gradients of the leaves, if there are."""
    gradients = []
    for accumulator in accumulators:
        joint = None
        for square, parameter, arriving in zip(squares, ctx.parameters, ctx.arriving):
            if parameter is not None and parameter.accumulator is accumulator and square is not None and arriving:
                joint = square if joint is None else joint + square
        if ctx.compiled:
            gradients.append(None if joint is None else sums_of(joint, examples, measure.group))
        elif joint is not None:
            accumulator.add(joint)
    return gradients


def differentiable_once(backward: Callable) -> Callable:
    """Let gradients of gradients fail with a message that says what to do.

    As `torch.autograd.function.once_differentiable`, whose message does not.
    """

    @wraps(backward)
    def once(ctx, *gradients):
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if ctx.compiled or not torch.is_grad_enabled():
            return found
        refuse = torch._C._functions.DelayedError(TWICE, len(found))
        return refuse(*(None if value is None else value.detach().requires_grad_() for value in found))

    return once


class _MeasuredCall(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rule, parameters, x, weight, bias, *leaves):
        with native.suspended() if leaves else nullcontext():
            y, saved = rule.forward(x, weight, bias)
        _start(ctx, parameters, leaves)
        ctx.rule = rule
        ctx.plain = [None if isinstance(value, Tensor) else value for value in saved]
        ctx.tensors = [isinstance(value, Tensor) for value in saved]
        # One tensor more than the layer's own function saves: activation checkpointing, which puts what a recomputed
        # forward saves into the places of these, then notices where the recomputation is not tracked.
        mark = () if ctx.compiled else (x.new_empty(0),)
        ctx.save_for_backward(x, weight, *(value for value in saved if isinstance(value, Tensor)), *mark)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, gy):
        x, weight, *tensors = ctx.saved_tensors
        tensors = iter(tensors)
        saved = tuple(next(tensors) if is_tensor else value for value, is_tensor in zip(ctx.plain, ctx.tensors))
        measure, accumulators = _enter(ctx, len(x), _nodes(ctx)[1:])
        with where.without_autocast(gy), native.suspended() if ctx.compiled else nullcontext():
            got = ctx.rule.backward(gy, x, weight, saved, ctx.needs_input_grad[2:5], measure)
            leaves = _add(ctx, (got.weight.squares, got.bias.squares), accumulators, len(x), measure)
        return None, None, got.input, got.weight.gradient, got.bias.gradient, *leaves


class _Expansion(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, parameters, count, *tensors_and_leaves):
        tensors, leaves = tensors_and_leaves[:count], tensors_and_leaves[count:]
        _start(ctx, parameters, leaves)
        ctx.shapes = [tensor.shape for tensor in tensors]
        return tuple(tensor.expand(shape) for tensor in tensors)

    @staticmethod
    @differentiable_once
    def backward(ctx, *gradients):
        measure, accumulators = _enter(ctx, len(gradients[0]), _nodes(ctx))
        with where.without_autocast(gradients[0]):
            per_example = []
            for gradient, shape in zip(gradients, ctx.shapes):
                aligned = (1,) * (gradient.dim() - len(shape)) + shape
                per_example.append(gradient.sum_to_size(len(gradient), *aligned[1:]))
            summed = [value.sum(0).reshape(shape) for value, shape in zip(per_example, ctx.shapes)]
            squares = [measure.squared(value[measure.rows]) for value in per_example]
            leaves = _add(ctx, squares, accumulators, len(gradients[0]), measure)
            return None, None, None, *summed, *leaves
