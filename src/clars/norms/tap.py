"""The autograd functions that stand in for a layer's own: same values, and the norms on the way back."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clars.norms import cpu
from clars.norms.account import ACCOUNTS, Account, sums_of
from clars.norms.product import squared_norms
from clars.norms.rule import Measure, Rule


class Call(NamedTuple):
    """A call of a layer: its rule, what the rule is applied to, and the accounts of weight and bias."""

    rule: Rule
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    accounts: tuple[Account | None, Account | None]


class Compiled(NamedTuple):
    """A compiled layer's call: its operator takes the input and then these arguments.

    It is as good for the next call with tensors of the same sizes. For other sizes, and in circumstances that need
    other means, the operator returns None.
    """

    layer: cpu.Layer
    arguments: tuple  # weight, bias, the layer's number and those of two accounts


def tapped(call: Call) -> tuple[Tensor, Compiled | None]:
    """Make the call so that its backward pass books the norms of weight and bias to their two accounts.

    Returns the output, and how it came about if a compiled layer made it.
    """
    rule, x, weight, bias, accounts = call
    distinct = _distinct(accounts, x.shape[0])
    layer = rule.compiled(x, weight, distinct[0].current.estimator)
    if layer is not None:
        numbers = (0 if account is None else account.number for account in accounts)
        arguments = (weight, bias, layer.number, *numbers)
        y = layer.operator(x, *arguments)
        if y is not None:
            return y, Compiled(layer, arguments)
    return _Tap.apply(rule, accounts, distinct, x, weight, bias, *_leaves(distinct, weight)), None


def spread(shape: torch.Size, parameters: Sequence[Tensor], accounts: Sequence[Account]) -> tuple[Tensor, ...]:
    """Expand each parameter to `shape` [B, ...], so that each example's own gradient arrives and can be measured."""
    distinct = _distinct(accounts, shape[0] if shape else 1)
    leaves = _leaves(distinct, parameters[0])
    return _Spread.apply(shape, tuple(accounts), distinct, len(parameters), *parameters, *leaves)


def _distinct(accounts: Sequence[Account | None], rows: int) -> tuple[Account, ...]:
    """Return the accounts concerned, each once, after a check that `rows` can be the batch."""
    distinct: tuple[Account, ...] = ()
    for account in accounts:
        if account is not None and account not in distinct:
            account.current.check_rows(rows, account.layer)
            distinct += (account,)
    return distinct


def _leaves(distinct: tuple[Account, ...], like: Tensor) -> list[Tensor]:
    """Return the tensors by whose gradients the sums of a compiled backward pass leave it; otherwise none."""
    if not torch.compiler.is_compiling():
        return []
    distinct[0].current.estimator.without_draw()
    return [account.leaf(like) for account in distinct]


def book(number: int, backward_pass: int, spent: bool, squares: Tensor) -> tuple[int, int]:
    """Book to an account, by its number, the measured part of `squares` [B], which a compiled function is to fill.

    Returns the first of the examples to be measured, and the one after the last.
    """
    examples = squares.shape[0]
    account = ACCOUNTS.get(number)
    if account is None:  # nobody tracks the layer any more
        return 0, examples
    if spent:
        account.refuse_second_pass()
    account.enter(backward_pass, examples)
    first, last = account.current.lend()
    account.note(squares if last - first == examples else squares[first:last])
    return first, last


_LIBRARY = torch.library.Library("clars", "FRAGMENT")
_LIBRARY.define("book(int number, int backward_pass, bool spent, Tensor squares) -> (int, int)")
_LIBRARY.impl("book", book, "CompositeExplicitAutograd")


def _start(ctx, accounts: tuple[Account | None, ...], distinct: tuple[Account, ...], leaves: Sequence) -> None:
    ctx.accounts, ctx.distinct = accounts, distinct
    ctx.spent = False
    ctx.compiled = len(leaves) > 0
    if not ctx.compiled:
        ctx.outer_pass = torch._C._current_graph_task_id()  # not -1: recomputed inside a backward pass


def _full_precision(gradient: Tensor) -> AbstractContextManager:
    """Keep autocast, where a backward pass is called inside of it, from taking norms in half precision."""
    device = gradient.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _enter(ctx, examples: int) -> tuple[Measure, int]:
    """Return what to measure in this backward pass. A compiled one is traced once, so it can check nothing."""
    if ctx.compiled:
        return ctx.distinct[0].current.estimator.without_draw(), 1
    if ctx.spent:
        ctx.distinct[0].refuse_second_pass()
    ctx.spent = True
    # autograd's number of the pass under way, or of the one that recomputed the forward
    number = ctx.outer_pass if ctx.outer_pass != -1 else torch._C._current_graph_task_id()
    for account in ctx.distinct:
        account.enter(number, examples)
    first = ctx.distinct[0]
    measure = first.current.measure
    if measure.report is not None:
        measure = measure._replace(report=partial(measure.report, first.layer))
    return measure, first.current.blocks


def _book(ctx, squares: Sequence[Tensor | None], blocks: int) -> list[Tensor | None]:
    """Book to each account the joint squares of its parameters; return the gradients of the leaves, if there are."""
    gradients = []
    for account in ctx.distinct:
        joint = None
        for square, owner in zip(squares, ctx.accounts):
            if owner is account and square is not None:
                joint = square if joint is None else joint + square
        if ctx.compiled:
            gradients.append(None if joint is None else sums_of(joint, blocks))
        elif joint is not None:
            account.booked.append((joint, blocks))
    return gradients


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rule, accounts, distinct, x, weight, bias, *leaves):
        y, saved = rule.forward(x, weight, bias)
        _start(ctx, accounts, distinct, leaves)
        ctx.rule = rule
        ctx.plain = [None if isinstance(value, Tensor) else value for value in saved]
        ctx.tensors = [isinstance(value, Tensor) for value in saved]
        # One tensor more than the layer's own function saves: activation checkpointing, which puts what a recomputed
        # forward saves into the places of these, then notices where the recomputation is not tracked.
        mark = () if ctx.compiled else (x.new_empty(0),)
        ctx.save_for_backward(x, weight, *(value for value in saved if isinstance(value, Tensor)), *mark)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        x, weight, *tensors = ctx.saved_tensors
        tensors = iter(tensors)
        saved = tuple(next(tensors) if is_tensor else value for value, is_tensor in zip(ctx.plain, ctx.tensors))
        measure, blocks = _enter(ctx, len(x))
        with _full_precision(gy):
            got = ctx.rule.backward(gy, x, weight, saved, ctx.needs_input_grad[3:6], measure)
            leaves = _book(ctx, (got.weight.squares, got.bias.squares), blocks)
        return None, None, None, got.input, got.weight.gradient, got.bias.gradient, *leaves


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, accounts, distinct, count, *parameters_and_leaves):
        parameters, leaves = parameters_and_leaves[:count], parameters_and_leaves[count:]
        _start(ctx, accounts, distinct, leaves)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return tuple(parameter.expand(shape) for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        measure, blocks = _enter(ctx, len(gradients[0]))
        with _full_precision(gradients[0]):
            per_example = []
            for gradient, shape in zip(gradients, ctx.shapes):
                aligned = (1,) * (gradient.dim() - len(shape)) + shape
                per_example.append(gradient.sum_to_size(len(gradient), *aligned[1:]))
            summed = [value.sum(0).reshape(shape) for value, shape in zip(per_example, ctx.shapes)]
            squares = [squared_norms(value[measure.rows]) for value in per_example]
            return None, None, None, None, *summed, *_book(ctx, squares, blocks)
