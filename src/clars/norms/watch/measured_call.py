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
from clars.norms.methods.planned import Formed, plan_of
from clars.norms.rules.rule import LayerCall
from clars.norms.watch.accumulator import REGISTRY, Accumulator, sums_of
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


_NOTHING = torch.empty(0)


def accelerated_backward(
    plan: int,
    of_weight: int,
    of_bias: int,
    backward_pass: int,
    spent: bool,
    partial: bool,
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Sequence[Tensor],
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    bias_squares: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Do the part of a layer's backward pass on an accelerator that its plan, by its number, has a way for.

    Args:
        plan: of the layer.
        of_weight, of_bias: the numbers of their accumulators; 0 for what nobody measures.
        backward_pass, spent, partial: as for `add_squares`.
        gy, x, weight, saved: of the call.
        needs_input, needs_weight, needs_bias: which gradients are wanted.
        bias_squares: the bias's, of all examples or groups, where they are known.

    Returns the gradients of input, weight and bias, empty where they are to be formed as usual, and whether anything
    was added.
    """
    examples = x.shape[0]
    weights = _entered(of_weight, backward_pass, spent, partial, examples) if of_weight else None
    biases = weights
    if of_bias != of_weight:
        biases = _entered(of_bias, backward_pass, spent, partial, examples) if of_bias else None
    asked = weights or biases
    first, last = asked.current.measured() if asked is not None else (0, examples)
    got = Formed()
    way = plan_of(plan)
    if needs_weight or not way.for_weight_alone:
        got = way(gy, x, weight, saved, needs_input, first, last)
    if bias_squares is None:
        bias_squares = got.bias_squares
    elif last - first < examples:
        bias_squares = bias_squares[first:last]
    if weights is not None:
        weights.add(got.weight_squares + bias_squares if of_bias == of_weight else got.weight_squares)
    if biases is not None and biases is not weights:
        biases.add(bias_squares)
    gradients = (got.input, got.weight, got.bias)
    return *(_NOTHING if value is None else value for value in gradients), asked is not None


def _entered(number: int, backward_pass: int, spent: bool, partial: bool, examples: int) -> Accumulator | None:
    """Return the accumulator of a number, if a layer's backward pass is to add to it."""
    accumulator = REGISTRY.get(number)
    if accumulator is None:  # nobody tracks the layer any more
        return None
    if partial and not any(parameter.gradient_arrives() for parameter in accumulator.parameters):
        return None
    return accumulator if accumulator.enter(backward_pass, examples, spent) else None


def add_squares(
    number: int, backward_pass: int, spent: bool, partial: bool, examples: int, squares: Tensor
) -> tuple[int, int, bool]:
    """Add to an accumulator, by its number, the measured part of `squares`, which a layer in C++ is to fill.

    Args:
        number: of the accumulator.
        backward_pass: autograd's number of the pass.
        spent: whether an earlier pass has measured this same call.
        partial: whether the pass yields only some gradients, or leaves them elsewhere than in the parameters.
        examples: how many rows the layer saw.
        squares: what is to be filled: a number for each of them, or for each group.

    Returns the first of the examples to be measured, the one after the last, and whether anything was added.
    """
    accumulator = _entered(number, backward_pass, spent, partial, examples)
    if accumulator is None:
        return 0, examples, False
    first, last = accumulator.current.measured()
    accumulator.add(squares if last - first == examples else squares[first:last])
    return first, last, True


_LIBRARY = torch.library.Library("clars", "FRAGMENT")
_ARGUMENTS = "int number, int backward_pass, bool spent, bool partial, int examples, Tensor squares"
_LIBRARY.define(f"add_squares({_ARGUMENTS}) -> (int, int, bool)")
_LIBRARY.impl("add_squares", add_squares, "CompositeImplicitAutograd")
_ACCUMULATORS = "int plan, int of_weight, int of_bias, int backward_pass, bool spent, bool partial"
_TENSORS = "Tensor gy, Tensor x, Tensor weight, Tensor[] saved"
_NEEDS = "bool needs_input, bool needs_weight, bool needs_bias, Tensor? bias_squares"
_LIBRARY.define(f"accelerated_backward({_ACCUMULATORS}, {_TENSORS}, {_NEEDS}) -> (Tensor, Tensor, Tensor, bool)")
_LIBRARY.impl("accelerated_backward", accelerated_backward, "CompositeImplicitAutograd")


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
