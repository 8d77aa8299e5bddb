"""The autograd functions that stand in for a layer's own: same values, and the norms on the way back."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clars.errors import UnsupportedLayerError
from clars.norms.account import Account
from clars.norms.rule import Rule
from clars.norms.strategy import squared_norms


def tapped(rule: Rule, x: Tensor, weight: Tensor, bias: Tensor | None, accounts: Sequence[Account | None]) -> Tensor:
    """Apply `rule` so that its backward pass books the norms of weight and bias to their two accounts."""
    _check_rows(accounts, len(x))
    return _Tap.apply(rule, tuple(accounts), x, weight, bias, *_leaves(accounts, weight))


def spread(shape: torch.Size, parameters: Sequence[Tensor], accounts: Sequence[Account]) -> tuple[Tensor, ...]:
    """Expand each parameter to `shape` [B, ...], so that each example's own gradient arrives and can be measured."""
    _check_rows(accounts, shape[0] if shape else 1)
    return _Spread.apply(shape, tuple(accounts), len(parameters), *parameters, *_leaves(accounts, parameters[0]))


def _check_rows(accounts: Sequence[Account | None], rows: int) -> None:
    for account in _distinct(accounts):
        account.current.check_rows(rows, account.layer)


def _distinct(accounts: Sequence[Account | None]) -> list[Account]:
    return list(dict.fromkeys(account for account in accounts if account is not None))


def _leaves(accounts: Sequence[Account | None], like: Tensor) -> list[Tensor]:
    return [account.leaf(like) for account in _distinct(accounts)]


def _start(ctx, accounts: tuple[Account | None, ...]) -> None:
    ctx.accounts = accounts
    ctx.outer_pass = torch._C._current_graph_task_id()  # not -1: recomputed inside a backward pass
    ctx.spent = False


def _book(ctx, squares: Sequence[Tensor | None], leaves: Sequence[Tensor], examples: int) -> list[Tensor | None]:
    """Return the gradient of each account's leaf: the squares of its parameters joined, then the norms summed."""
    if ctx.spent:
        raise UnsupportedLayerError(
            "is reached by a second backward pass through the same forward pass (retain_graph=True). Add the losses up "
            "and call backward once.",
            _distinct(ctx.accounts)[0].layer,
        )
    ctx.spent = True
    number = ctx.outer_pass if ctx.outer_pass != -1 else torch._C._current_graph_task_id()
    entries = []
    for account, leaf in zip(_distinct(ctx.accounts), leaves):
        own = [square for square, owner in zip(squares, ctx.accounts) if owner is account and square is not None]
        if own:
            account.enter(number, examples)
        entries.append(account.entry(sum(own), leaf) if own else None)
    return entries


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rule, accounts, x, weight, bias, *leaves):
        y, saved = rule.forward(x, weight, bias)
        _start(ctx, accounts)
        ctx.rule, ctx.leaves = rule, leaves
        ctx.plain = [None if isinstance(value, Tensor) else value for value in saved]
        ctx.tensors = [isinstance(value, Tensor) for value in saved]
        ctx.save_for_backward(x, weight, *(value for value in saved if isinstance(value, Tensor)))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        x, weight, *tensors = ctx.saved_tensors
        tensors = iter(tensors)
        saved = tuple(next(tensors) if is_tensor else value for value, is_tensor in zip(ctx.plain, ctx.tensors))
        got = ctx.rule.backward(gy, x, weight, saved, ctx.needs_input_grad[2:5])
        entries = _book(ctx, (got.weight.squares, got.bias.squares), ctx.leaves, len(x))
        return None, None, got.input, got.weight.gradient, got.bias.gradient, *entries


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, accounts, count, *parameters_and_leaves):
        parameters, ctx.leaves = parameters_and_leaves[:count], parameters_and_leaves[count:]
        _start(ctx, accounts)
        ctx.shapes = [parameter.shape for parameter in parameters]
        return tuple(parameter.expand(shape) for parameter in parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        per_example = []
        for gradient, shape in zip(gradients, ctx.shapes):
            aligned = (1,) * (gradient.dim() - len(shape)) + shape
            per_example.append(gradient.sum_to_size(len(gradient), *aligned[1:]))
        summed = [value.sum(0).reshape(shape) for value, shape in zip(per_example, ctx.shapes)]
        squares = [squared_norms(value) for value in per_example]
        entries = _book(ctx, squares, ctx.leaves, len(gradients[0]))
        return None, None, None, *summed, *entries
