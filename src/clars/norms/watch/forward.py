"""The watched forward that stands in a module's place for its own, and how it gets there and away again."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, wraps
from types import FunctionType, MethodType
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.fx import _symbolic_trace

from clars.native import where
from clars.norms.owners import Following
from clars.norms.watch.interception import Interception
from clars.norms.watch.modules import KNOWN, Known
from clars.norms.watch.watching import Tracker
from clars.sharding.support import refuse_uneven

_BY_FX = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)

PLAIN = "_forward_before_tracking"


class Watch:
    """Who tracks a module. Neither is kept alive by it: without its tracker, a module runs its plain forward."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.reference = ref(module), None
        self.known: Known | None = None  # what its forward does

    def tracker(self) -> Tracker | None:
        """Return the tracker at work."""
        tracker = None if self.reference is None else self.reference()
        return tracker if tracker is not None and tracker.active else None


WATCHES: "WeakKeyDictionary[nn.Module, Watch]" = WeakKeyDictionary()


def tracker_of(module: nn.Module) -> Tracker | None:
    """Return the tracker at work in `module`."""
    watch = WATCHES.get(module)
    return None if watch is None else watch.tracker()


def install(module: nn.Module, tracker: Tracker) -> None:
    """Put the watched forward in place of the module's own.

    It is a bound method: wrappers that rebind methods, and copies and pickles of the module, treat it as any other.
    A copy is not what its watch is of, so it runs its plain forward, with its own parameters.
    """
    if module not in WATCHES:
        WATCHES[module] = watch = Watch(module)
        present = module.__dict__.get("forward")
        if _is_watched(present):  # of the module that this one is a copy of
            present = module.__dict__.pop(PLAIN, None)
        if present is not None:
            module.__dict__[PLAIN] = present
        else:
            watch.known = KNOWN.get(type(module))
        module.forward = MethodType(_watched(watch, present or type(module).forward, bound=present is not None), module)
    WATCHES[module].reference = ref(tracker)


def uninstall(module: nn.Module) -> None:
    """Give the module its own forward back. A wrapper put around ours meanwhile stays, and passes through."""
    if _is_watched(module.__dict__.get("forward")):
        WATCHES.pop(module).reference = None
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


def _forward(watch: Watch, module: nn.Module, args: tuple, kwargs: dict):
    """Stand in for `module.forward`. Parameters are looked up anew at each call, as some strategies swap them."""
    tracker = watch.tracker()
    if watch.known is not None and tracker is not None and not kwargs and not where.is_compiling():
        y = _again(watch, tracker, module, args)
        if y is not None:
            return y
    plain = module.__dict__.get(PLAIN) or partial(type(module).forward, module)
    if tracker is None or watch.module() is not module or _is_recorded():
        return plain(*args, **kwargs)
    if module is tracker.model:
        if not where.is_compiling():
            refuse_uneven()
        tracker.refresh_all()
    else:
        tracker.refresh(module)
    if tracker.is_watching():
        return plain(*args, **kwargs)
    if where.is_compiling():
        labels, interception = None, Interception(tracker)
        tracker.begin_watching(module, args, kwargs, None)
    else:
        interception = Interception(tracker)
        tracker.begin_watching(module, args, kwargs, interception)
        labels = tracker.follow(module, (*args, *kwargs.values()))
        if labels is not None:
            interception.follow(labels)
    ended = False
    try:
        with interception, nullcontext() if labels is None else Following(labels):
            y = plain(*args, **kwargs)
        if not where.is_compiling() and torch.is_grad_enabled():
            interception.refuse_returned(y)
        ended = True
    finally:
        tracker.end_watching()
        if labels is not None and (not ended or interception.refused):
            tracker.decisions.failed()
    if not where.is_compiling() and interception.refused:
        tracker.refuse(interception.refused)
    return y


def _again(watch: Watch, tracker: Tracker, module: nn.Module, args: tuple) -> torch.Tensor | None:
    """Return the output of a module that does, within a watched forward, what it did before; None for others."""
    interception = tracker.interception()
    if interception is None or not tracker.shortcuts.known_modules or watch.module() is not module:
        return None
    known = watch.known
    if len(args) != 1 or type(args[0]) is not torch.Tensor or not known.holds(module):
        return None
    call = known.called(module, args[0])
    y = None if call is None else interception.again(call)
    if y is not None and known.beside is not None:
        with torch._C.DisableTorchFunction():
            known.beside(module)
    return y


def _is_recorded() -> bool:
    """Tell whether somebody records what runs, to run it elsewhere, or takes gradients that reach no parameter."""
    if where.is_compiling():
        return where.is_exporting()
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _BY_FX()
    )


def _watched(watch: Watch, plain: Callable, bound: bool) -> Callable:
    """Return the watched forward with name, documentation, source and signature of `plain`, which it looks up itself.

    torch.jit.script compiles that source, with the names that are global there: a scripted model is not tracked. The
    code is an object of its own, as torch.compile gives up on one that it has compiled for too many modules.
    """

    def forward(self, *args, **kwargs):
        return stand_in(watch, self, args, kwargs)

    stand_in = _forward
    names = getattr(plain, "__globals__", globals())
    forward = wraps(plain)(FunctionType(forward.__code__.replace(), names, "forward", None, forward.__closure__))
    forward.__name__ = "forward"  # by which a pickled method is found again
    if (signature := _signature(plain, bound)) is not None:
        forward.__signature__ = signature
    return forward


def _signature(plain: Callable, bound: bool) -> inspect.Signature | None:
    """Return the signature of a forward before its module is bound to it; None where it does not tell one."""
    with suppress(ValueError, TypeError):
        signature = inspect.signature(plain)
        if bound:
            module = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
            signature = signature.replace(parameters=[module, *signature.parameters.values()])
        return signature
    return None


_CODE = _watched(Watch(nn.Identity()), nn.Identity.forward, bound=False).__code__


def _is_watched(method: object) -> bool:
    """Tell whether a method is ours; one that somebody has wrapped around ours is not."""
    return getattr(getattr(method, "__func__", None), "__code__", None) == _CODE
