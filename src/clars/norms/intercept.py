"""Watches a module's forward and replaces each use of a tracked parameter by one that books its norms."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from clars.errors import UnsupportedLayerError
from clars.norms.account import Account
from clars.norms.functions import ELEMENTWISE, EXPANSIONS, RULES, VIEWS
from clars.norms.tap import spread


class TrackedForward:
    """Stands in for `module.forward`: the same values, watched while gradients are enabled.

    Parameters are looked up anew at each call, because sharding and parametrisation swap parameter objects. Copies
    and pickles of the module get the module's plain forward back: a copy is not tracked.
    """

    def __init__(self, module: nn.Module, accounts: dict[str, Account], tracker: object) -> None:
        self.module = module
        self.accounts = accounts
        self.tracker = tracker
        self.previous = module.__dict__.get("forward")
        self.active = True

    @property
    def plain(self):
        """The forward that stood here before."""
        return self.previous or type(self.module).forward.__get__(self.module)

    def __call__(self, *args, **kwargs):
        if not (self.active and torch.is_grad_enabled()):
            return self.plain(*args, **kwargs)
        found = {}
        for name, account in self.accounts.items():
            parameter = getattr(self.module, name)
            if parameter.requires_grad:
                found[id(parameter)] = account
        with Interception(found):
            return self.plain(*args, **kwargs)

    def __deepcopy__(self, memo):
        copied = memo.get(id(self.module))
        return type(self.module).forward.__get__(copied)

    def __reduce__(self):
        return _plain_forward, (self.module,)


def _plain_forward(module: nn.Module):
    return type(module).forward.__get__(module)


class Interception(TorchFunctionMode):
    """While it is entered, every use of the given parameters is a known rule, harmless, or refused by name."""

    def __init__(self, accounts: dict[int, Account]) -> None:
        super().__init__()
        self.accounts = accounts
        self.followed: list[Tensor] = []  # keeps views of parameters alive, so that no other tensor takes their id

    def account(self, tensor: Tensor | None) -> Account | None:
        return self.accounts.get(id(tensor)) if tensor is not None else None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        used = [tensor for tensor in _tensors((*args, *kwargs.values())) if id(tensor) in self.accounts]
        if not used:
            return func(*args, **kwargs)
        if func in RULES and id(_first(args, kwargs)) not in self.accounts:
            return RULES[func](self.account, *args, **kwargs)
        if func in EXPANSIONS:
            return self._expanded(used[0], func(*args, **kwargs).shape)
        if func in ELEMENTWISE and len(used) == 1 and any(value is used[0] for value in args):
            return self._broadcast(used[0], func, args, kwargs)
        result = func(*args, **kwargs)
        if func in VIEWS and result.numel() == used[0].numel():
            self.accounts[id(result)] = self.accounts[id(used[0])]
            self.followed.append(result)
        elif any(tensor.requires_grad for tensor in _tensors((result,))):
            function = resolve_name(func) or func.__name__
            self._refuse(used[0], f"in {function}, for which no exact per-example norm is known.")
        return result

    def _broadcast(self, parameter: Tensor, func, args, kwargs):
        shape = torch.broadcast_shapes(*(tensor.shape for tensor in _tensors(args)))
        expanded = self._expanded(parameter, shape)
        return func(*(expanded if value is parameter else value for value in args), **kwargs)

    def _expanded(self, parameter: Tensor, shape: torch.Size) -> Tensor:
        if len(parameter.shape) == len(shape) and shape and parameter.shape[0] != 1:
            self._refuse(parameter, f"where dimension 0 of {tuple(shape)} should be the batch.")
        return spread(shape, [parameter], [self.accounts[id(parameter)]])[0]

    def _refuse(self, parameter: Tensor, where: str) -> None:
        layer = self.accounts[id(parameter)].layer
        raise UnsupportedLayerError(f"uses its parameter of shape {tuple(parameter.shape)} {where}", layer)


def _first(args, kwargs):
    return args[0] if args else kwargs.get("input")


def _tensors(values) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
