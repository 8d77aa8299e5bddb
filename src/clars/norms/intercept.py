"""Watches a model's forward and replaces each use of a tracked parameter by one that books its norms."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from clars.errors import UnsupportedLayerError
from clars.norms.account import Account
from clars.norms.functions import ELEMENTWISE, EXPANSIONS, LOOKS_AT_SECOND, RULES, VIEWS
from clars.norms.known import Known, known
from clars.norms.tap import Call, spread, tapped

if TYPE_CHECKING:
    from clars.norms.tracker import ExampleNorms


class Part:
    """A parameter of a layer, as it is now: strategies may put another tensor in its place from call to call."""

    __slots__ = ("account", "known", "module", "name", "parameter")

    def __init__(self, account: Account, module: nn.Module, name: str) -> None:
        self.account, self.module, self.name = account, module, name
        self.parameter: Tensor | None = None
        self.known: Known | None = None  # the call of it that a compiled function made last

    def present(self) -> Tensor:
        value = self.module._parameters.get(self.name)
        return getattr(self.module, self.name) if value is None else value


# Who tracks a module. Neither side is kept alive by it: without its tracker, a module runs its plain forward.
TRACKERS: "WeakKeyDictionary[nn.Module, ReferenceType[ExampleNorms]]" = WeakKeyDictionary()
PLAIN = "_forward_before_tracking"


def tracker_of(module: nn.Module) -> "ExampleNorms | None":
    """Return the tracker at work in `module`."""
    reference = TRACKERS.get(module)
    tracker = reference() if reference is not None else None
    return tracker if tracker is not None and tracker.active else None


def install(module: nn.Module, tracker: "ExampleNorms") -> None:
    """Put the watched forward in place of the module's own.

    It is a bound method: wrappers that rebind methods, and copies and pickles of the module, treat it as any other.
    A copy is in nobody's register, so it runs its plain forward, with its own parameters.
    """
    present = module.__dict__.get("forward")
    if module not in TRACKERS and getattr(present, "__func__", None) is not forward:
        if present is not None:
            module.__dict__[PLAIN] = present
        module.forward = MethodType(forward, module)
    TRACKERS[module] = ref(tracker)


def uninstall(module: nn.Module) -> None:
    """Give the module its own forward back. A wrapper put around ours meanwhile stays, and passes through."""
    present = module.__dict__.get("forward")
    if getattr(present, "__func__", None) is forward:
        del TRACKERS[module]
        del module.forward
        if PLAIN in module.__dict__:
            module.forward = module.__dict__.pop(PLAIN)


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Run without tracking."""
    trackers = {tracker_of(module) for module in model.modules()} - {None}
    for tracker in trackers:
        tracker.active = False
    try:
        yield
    finally:
        for tracker in trackers:
            tracker.active = True


def forward(module: nn.Module, *args, **kwargs):
    """Stand in for `module.forward`. Parameters are looked up anew at each call, as some strategies swap them."""
    plain = module.__dict__.get(PLAIN) or partial(type(module).forward, module)
    tracker = tracker_of(module)
    if tracker is None:
        return plain(*args, **kwargs)
    if module is tracker.model:
        tracker.refresh_all()
    else:
        tracker.refresh(module)
    if tracker.is_watching():
        return plain(*args, **kwargs)
    inputs = (*args, *kwargs.values()) if module is tracker.model else ()
    with tracker.watching(inputs), Interception(tracker.parts):
        return plain(*args, **kwargs)


class Interception(TorchFunctionMode):
    """While it is entered, every use of a tracked parameter is a known rule, harmless, or refused by name.

    Args:
        parts: the tracked parameters, by id.
    """

    def __init__(self, parts: dict[int, Part]) -> None:
        super().__init__()
        self.parts = parts
        self.compiling = torch.compiler.is_compiling()
        self.views: dict[int, Part] = {}  # of parameters
        self.compiled: set[str] = set()  # what a compilation has met so far
        self.followed: list[Tensor] = []  # keeps these views alive, so that no other tensor takes their id

    def part(self, value) -> Part | None:
        """Return whose parameter `value` is, if it is one that requires a gradient now."""
        part = self.parts.get(id(value)) or self.views.get(id(value))
        return part if part is not None and part.parameter.requires_grad else None

    def account(self, tensor: Tensor | None) -> Account | None:
        """Return the account of a parameter that a rule is about to measure; None for other tensors."""
        part = self.part(tensor)
        if part is None:
            return None
        if self.compiling:
            self._note_use(part)
        part.account.measured.add(part.name)
        return part.account

    def _note_use(self, part: Part) -> None:
        """Note here a second use, which the compiled backward pass, running no Python, cannot refuse."""
        use = f"{part.account.layer} {part.name}"
        if use in self.compiled:
            part.account.compiled_twice = True
        self.compiled.add(use)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        again = self._again(func, values, kwargs)
        if again is not None:
            return again
        used = self._first_part(values)
        return func(*args, **kwargs) if used is None else self._use(used, func, args, kwargs)

    def _again(self, func, values, kwargs) -> Tensor | None:
        """Return the output of a call that is known; None for others."""
        parts = self.parts
        for value in values[1:]:
            part = parts.get(id(value))
            if part is not None and part.known is not None:
                first = id(values[0])
                if self.compiling or first in parts or first in self.views:
                    return None
                return part.known.again(func, values, tuple(kwargs))
        return None

    def _first_part(self, values) -> Tensor | None:
        """Return the first tracked parameter among `values`, those in lists and tuples included."""
        parts, views = self.parts, self.views
        for value in values:
            if isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
                value = self._first_part(value)
            key = id(value)
            if (key in parts or key in views) and self.part(value) is not None:
                return value
        return None

    def _use(self, used: Tensor, func, args, kwargs):
        first = args[0] if args else kwargs.get("input")
        if func in RULES and self.part(first) is None:
            result = RULES[func](self.account, *args, **kwargs)
            return self._tapped(used, func, args, kwargs, result) if isinstance(result, Call) else result
        if func in LOOKS_AT_SECOND and first is not used:
            return func(*args, **kwargs)
        if func in EXPANSIONS:
            return self._expanded(used, func(*args, **kwargs).shape)
        if func in ELEMENTWISE and sum(self.part(value) is not None for value in args) == 1:
            return self._broadcast(used, func, args, kwargs)
        result = func(*args, **kwargs)
        if func in VIEWS and result.numel() == used.numel() and _keeps_every_element(func, args):
            self.views[id(result)] = self.part(used)
            self.followed.append(result)
        elif _differentiable(result):
            self._refuse(used, f"in {_name(func)}, for which no exact per-example norm is known.")
        return result

    def _tapped(self, used: Tensor, func, args, kwargs, call: Call) -> Tensor:
        y, compiled = tapped(call)
        if compiled is not None and id(used) in self.parts:  # a view is another one at each call
            self.part(used).known = known(func, (*args, *kwargs.values()), tuple(kwargs), call, compiled)
        return y

    def _broadcast(self, parameter: Tensor, func, args, kwargs):
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors_in(args)))
        expanded = self._expanded(parameter, shape)
        return func(*(expanded if value is parameter else value for value in args), **kwargs)

    def _expanded(self, parameter: Tensor, shape: torch.Size) -> Tensor:
        if len(parameter.shape) == len(shape) and shape and parameter.shape[0] != 1:
            self._refuse(parameter, f"where dimension 0 of {tuple(shape)} should be the batch.")
        return spread(shape, [parameter], [self.account(parameter)])[0]

    def _refuse(self, parameter: Tensor, where: str) -> None:
        layer = self.part(parameter).account.layer
        raise UnsupportedLayerError(f"uses its parameter of shape {tuple(parameter.shape)} {where}", layer)


def _keeps_every_element(func, args) -> bool:
    """Indexing by tensors or lists may repeat and drop elements, whatever their number."""
    if func is not Tensor.__getitem__:
        return True
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return all(value is None or value is Ellipsis or isinstance(value, (int, slice)) for value in index)


def _name(func) -> str:
    return resolve_name(func) or func.__name__


def _differentiable(result) -> bool:
    return any(tensor.requires_grad for tensor in tensors_in((result,)))


def tensors_in(values) -> Iterator[Tensor]:
    """Yield the tensors among `values`, those in tuples and lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
