"""The autograd functions that stand in for a layer's own: same values, and the norms on the way back."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from clars.errors import UnsupportedLayerError
from clars.native import kernels as cpu
from clars.norms.watch.accumulator import ACCOUNTS, Account, sums_of
from clars.norms.watch.part import Part, arrives
from clars.norms.methods.products import squared_norms
from clars.norms.rules.rule import Measure, Rule

TWICE = (
    "A layer that clars measures cannot be differentiated twice (a gradient penalty in the loss?). Take the tracking "
    "away for it: norms.remove(), with optimizer.norms as norms."
)


class Call(NamedTuple):
    """A call of a layer: its rule, what the rule is applied to, and which tracked parts weight and bias are."""

    rule: Rule
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    parts: tuple[Part | None, Part | None]


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

    Raises:
        UnsupportedLayerError: the input has not as many rows as the model's.
    """
    rule, x, weight, bias, parts = call
    accounts, leaves = _accounts(parts, x.shape[0]), _leaves(parts)
    layer = None if leaves else rule.compiled(x, weight, accounts[0].current.estimator)
    if layer is not None:
        numbers = (0 if part is None else part.account.number for part in parts)
        arguments = (weight, bias, layer.number, *numbers)
        y = layer.operator(x, *arguments)
        if y is not None:
            return y, Compiled(layer, arguments)
    return _Tap.apply(rule, parts, x, weight, bias, *leaves), None


def spread(shape: torch.Size, parameters: Sequence[Tensor], parts: Sequence[Part | None]) -> tuple[Tensor, ...]:
    """Expand each parameter to `shape` [B, ...], so that each example's own gradient arrives and can be measured."""
    _accounts(parts, shape[0] if shape else 1)
    return _Spread.apply(shape, tuple(parts), len(parameters), *parameters, *_leaves(parts))


def _accounts(parts: Sequence[Part | None], rows: int) -> list[Account]:
    """Return the accounts concerned, each once, after a check that `rows` can be the batch."""
    accounts: list[Account] = []
    for part in parts:
        if part is not None and part.account not in accounts:
            if problem := part.account.current.problem_of(rows):
                raise UnsupportedLayerError({part.account.layer: problem})
            accounts.append(part.account)
    return accounts


def _leaves(parts: Sequence[Part | None]) -> list[Tensor]:
    """Return the tensors by whose gradients the sums of a compiled backward pass leave it; otherwise none."""
    leaves = {part.account: part.leaf for part in parts if part is not None and part.leaf is not None}
    for account in leaves:
        account.current.estimator.without_draw()
    return list(leaves.values())


def book(number: int, backward_pass: int, spent: bool, partial: bool, squares: Tensor) -> tuple[int, int, bool]:
    """Book to an account, by its number, the measured part of `squares` [B], which a compiled function is to fill.

    Args:
        number: of the account.
        backward_pass: autograd's number of the pass.
        spent: whether an earlier pass has booked this same call.
        partial: whether the pass yields only some gradients, or leaves them elsewhere than in the parameters.
        squares: what is to be filled.

    Returns the first of the examples to be measured, the one after the last, and whether anything was booked.
    """
    examples = squares.shape[0]
    account = ACCOUNTS.get(number)
    if account is None:  # nobody tracks the layer any more
        return 0, examples, False
    if partial and not any(part.gradient_arrives() for part in account.parts):
        return 0, examples, False
    if not account.enter(backward_pass, examples, spent):
        return 0, examples, False
    first, last = account.current.measured()
    if not partial:
        account.current.lend()
    account.book(squares if last - first == examples else squares[first:last])
    return first, last, True


_LIBRARY = torch.library.Library("clars", "FRAGMENT")
_LIBRARY.define("book(int number, int backward_pass, bool spent, bool partial, Tensor squares) -> (int, int, bool)")
_LIBRARY.impl("book", book, "CompositeImplicitAutograd")


def _start(ctx, parts: Sequence[Part | None], leaves: Sequence) -> None:
    ctx.parts = parts
    ctx.spent = False
    ctx.compiled = len(leaves) > 0
    if not ctx.compiled:
        ctx.outer_pass = torch._C._current_graph_task_id()  # not -1: recomputed inside a backward pass


def _full_precision(gradient: Tensor) -> AbstractContextManager:
    """Keep autocast, where a backward pass is called inside of it, from taking norms in half precision."""
    device = gradient.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _nodes(ctx) -> list[Node | None]:
    """Return where the gradients of the function's tensors go, in their order; of a compiled one nobody asks."""
    return [] if ctx.compiled else [node for node, _ in ctx.next_functions]


def _enter(ctx, examples: int, nodes: Sequence[Node | None]) -> tuple[Measure, list[Account]]:
    """Return what to measure in this backward pass, and the accounts to book it to.

    A compiled one is traced once, so it can check nothing.

    Args:
        ctx: of the autograd function.
        examples: how many rows it saw.
        nodes: where the gradients of the parts go.
    """
    accounts: list[Account] = []
    if ctx.compiled:
        ctx.arriving = [True] * len(ctx.parts)
        for part in ctx.parts:
            if part is not None and part.account not in accounts:
                accounts.append(part.account)
        return accounts[0].current.estimator.without_draw(), accounts
    # autograd's number of the pass under way, or of the one that recomputed the forward
    number = ctx.outer_pass if ctx.outer_pass != -1 else torch._C._current_graph_task_id()
    ctx.arriving = [part is not None and arrives(node) for part, node in zip(ctx.parts, nodes)]
    asked: list[Account] = []
    for part in compress(ctx.parts, ctx.arriving):
        if part.account not in asked:
            asked.append(part.account)
            if part.account.enter(number, examples, ctx.spent):
                accounts.append(part.account)
    ctx.spent = ctx.spent or bool(asked)
    if not accounts:
        return Measure(), accounts
    measure = accounts[0].current.measure
    if measure.report is not None:
        measure = measure._replace(report=partial(measure.report, accounts[0].layer))
    return measure, accounts


def _book(ctx, squares: Sequence[Tensor | None], accounts: Sequence[Account]) -> list[Tensor | None]:
    """Book to each account the joint squares of its parameters; return the gradients of the leaves, if there are."""
    gradients = []
    for account in accounts:
        joint = None
        for square, part, arriving in zip(squares, ctx.parts, ctx.arriving):
            if part is not None and part.account is account and square is not None and arriving:
                joint = square if joint is None else joint + square
        if ctx.compiled:
            gradients.append(None if joint is None else sums_of(joint, 1))
        elif joint is not None:
            account.book(joint)
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


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rule, parts, x, weight, bias, *leaves):
        with cpu.switched_off() if leaves else nullcontext():
            y, saved = rule.forward(x, weight, bias)
        _start(ctx, parts, leaves)
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
        measure, accounts = _enter(ctx, len(x), _nodes(ctx)[1:])
        with _full_precision(gy), cpu.switched_off() if ctx.compiled else nullcontext():
            got = ctx.rule.backward(gy, x, weight, saved, ctx.needs_input_grad[2:5], measure)
            leaves = _book(ctx, (got.weight.squares, got.bias.squares), accounts)
        return None, None, got.input, got.weight.gradient, got.bias.gradient, *leaves


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, parts, count, *parameters_and_leaves):
        parameters, leaves = parameters_and_leaves[:count], parameters_and_leaves[count:]
        _start(ctx, parts, leaves)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return tuple(parameter.expand(shape) for parameter in parameters)

    @staticmethod
    @differentiable_once
    def backward(ctx, *gradients):
        measure, accounts = _enter(ctx, len(gradients[0]), _nodes(ctx))
        with _full_precision(gradients[0]):
            per_example = []
            for gradient, shape in zip(gradients, ctx.shapes):
                aligned = (1,) * (gradient.dim() - len(shape)) + shape
                per_example.append(gradient.sum_to_size(len(gradient), *aligned[1:]))
            summed = [value.sum(0).reshape(shape) for value, shape in zip(per_example, ctx.shapes)]
            squares = [squared_norms(value[measure.rows]) for value in per_example]
            return None, None, None, *summed, *_book(ctx, squares, accounts)
