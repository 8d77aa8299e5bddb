"""The autograd function that stands in for a layer's own: same values, and the norms on the way back."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from clars import native
from clars.native import where
from clars.norms.owners import PLAIN, Pattern
from clars.norms.rules.rule import LayerCall
from clars.norms.watch import booking as booking  # its operators are what layers in C++ call
from clars.norms.watch import contributing
from clars.norms.watch.accumulator import Accumulator, Made
from clars.norms.watch.tracked_parameter import TrackedParameter

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
    accumulators: tuple[Accumulator, ...]  # these, each once
    made: Made

    def __call__(self, x: Tensor) -> Tensor | None:
        """Make the call with an input."""
        y = self.layer.operator(x, *self.arguments)
        if y is not None:
            for each in self.accumulators:
                each.call_natively(self.made)
        return y


def measured(call: LayerCall, pattern: Pattern = PLAIN) -> tuple[Tensor, NativeCall | None]:
    """Make the call so that its backward pass adds the norms of weight and bias to their accumulators.

    Args:
        call: the call.
        pattern: where the input has its examples.

    Returns the output, and how it came about if a layer in C++ made it.

    Raises:
        UnsupportedLayerError: the input has not as many examples as the model's.
    """
    rule, x, weight, bias, parameters, cast = call
    contributing.require_batch(parameters, pattern.examples(x.shape))
    x, leaves = pattern.gathered(x), contributing.leaves_of(parameters)
    if not leaves:
        y, native_call = _natively(call._replace(x=x), pattern)
        if y is not None:
            return pattern.scattered(y), native_call if pattern.consecutive else None
    y = _MeasuredCall.apply(rule, parameters, pattern.rows, *cast(x, weight, bias), *leaves)
    return pattern.scattered(y), None


def _natively(call: LayerCall, pattern: Pattern) -> tuple[Tensor | None, NativeCall | None]:
    """Make the call by a layer in C++; None where there is none for it, or what it measures is not the whole use."""
    rule, x, weight, bias, parameters, _ = call
    every = [parameter for parameter in parameters if parameter is not None]
    if not all(isinstance(each, TrackedParameter) for each in every) or len(set(every)) < len(every):
        return None, None
    accumulators = contributing.accumulators_of(every)
    if any(each.several or each.waits() for each in accumulators):
        return None, None
    cut = accumulators[0].current.estimator.cut(len(x) // pattern.rows)
    if pattern.rows > 1 and cut.blocks > 1:
        return None, None
    cut = cut._replace(group=cut.group * pattern.rows)
    layer = rule.native_layer(x, weight, accumulators[0].current.estimator.chooser, cut)
    if layer is None:
        return None, None
    numbers = (0 if each is None else each.accumulator.number for each in parameters)
    arguments = (weight, bias, layer.number, *numbers)
    native_call = NativeCall(layer, arguments, tuple(accumulators), Made(rule, pattern.rows, parameters))
    y = native_call(x)
    return y, None if y is None else native_call


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
    def forward(ctx, rule, operands, rows, x, weight, bias, *leaves):
        with native.suspended() if leaves else nullcontext():
            y, saved = rule.forward(x, weight, bias)
        if y._is_view():  # which older torch lets nobody change in place
            y = torch.ops.aten._unsafe_view(y, y.shape)
        contributing.start(ctx, operands, leaves)
        ctx.rule, ctx.rows = rule, rows
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
        examples, needs = len(x) // ctx.rows, ctx.needs_input_grad[3:6]
        nodes = [] if ctx.compiled else [node for node, _ in ctx.next_functions[1:3]]
        asked = contributing.enter(ctx, examples, nodes)
        measure = asked.measure.of_rows(ctx.rows)
        simple = ctx.compiled or not asked.accumulators or contributing.are_simple(ctx.operands)
        leaves: list = []
        with where.without_autocast(gy), native.suspended() if ctx.compiled else nullcontext():
            got = ctx.rule.backward(gy, x, weight, saved, needs, measure if simple else None)
            if simple:
                leaves = contributing.add_squares(ctx, (got.weight.squares, got.bias.squares), asked, examples)
            else:
                shares = contributing.shares_of(ctx.rule, gy, x, weight, saved, measure.group, ctx.rows)
                contributing.add_shares(ctx.operands, shares, asked, examples)
        return None, None, None, got.input, got.weight.gradient, got.bias.gradient, *leaves
