"""Functions of torch that are written in Python, and call others with the parameters they are given.

Such a function hands itself over whole to whoever watches. Here it is run with what it calls in sight.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType

from torch.nn import functional as F

OPENED = (F.multi_head_attention_forward,)


def of(func: Callable) -> Callable | None:
    """Return a function that does the same and hands only what it calls over; None for others than these."""
    return _opened(func) if func in OPENED else None


@cache
def _opened(func: FunctionType) -> Callable:
    names = {**func.__globals__, "has_torch_function": lambda _: False}
    opened = FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    opened.__kwdefaults__ = func.__kwdefaults__
    return opened
