"""Functions of torch that are made of others: what they call is in sight, where they themselves hand it over whole."""

from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType

import torch
from torch import Tensor
from torch.nn import functional as F


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Do as torch.nn.functional.prelu: input [B, C, ...], weight [C] or [1]."""
    slope = weight.reshape(-1, *[1] * (input.dim() - 2)) if input.dim() > 1 else weight
    return torch.where(input > 0, input, slope * input)


def rms_norm(input: Tensor, normalized_shape, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Do as torch.nn.functional.rms_norm: input [B, ..., *normalized_shape], weight of that shape."""
    if input.dtype not in (torch.float16, torch.bfloat16) or weight.dtype != input.dtype:
        return F.rms_norm(input, normalized_shape, None, eps) * weight
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    return (F.rms_norm(input.float(), normalized_shape, None, eps) * weight.float()).to(input.dtype)  # rounded once


def rows(x: Tensor) -> Iterator[Tensor]:
    """Do as iterating over a tensor."""
    return iter(x.unbind(0))


MADE_OF_OTHERS = {
    F.prelu: prelu,
    torch.prelu: prelu,
    F.rms_norm: rms_norm,
    torch.rms_norm: rms_norm,
    Tensor.__iter__: rows,
}
IN_PYTHON = (F.multi_head_attention_forward,)


def of(func: Callable) -> Callable | None:
    """Return a function that does the same and hands over only what it calls; None for others than these."""
    return _opened(func) if func in IN_PYTHON else MADE_OF_OTHERS.get(func)


@cache
def _opened(func: FunctionType) -> Callable:
    """Return torch's own function without the check by which it hands itself over."""
    names = {**func.__globals__, "has_torch_function": lambda _: False}
    opened = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
