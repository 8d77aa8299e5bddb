"""The state of any optimizer, of timm or of torch, in tensors by name. Its parameters are whole.

What it keeps of a parameter is called KEY.PARAMETER, what it counts for a group of them groups.NUMBER.KEY. What it will
keep is learnt from a copy that takes a step.
"""

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clars.errors import UserError

GROUPS = "groups"
STEP = "step"  # of a parameter; it stays on the processor, where optimizers keep it
Value = Tensor | float  # or bool, or int


def gather(model: nn.Module, inner: Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer; nothing before its first step."""
    if not inner.state:
        return {}
    return {name: _tensor(value).detach().cpu() for name, value in _values(model, inner).items()}


def expected(model: nn.Module, inner: Optimizer) -> dict[str, Tensor]:
    """Return a tensor of the right shape for each name that `gather` may return.

    Raises:
        UserError: as `require`.
    """
    return {name: _tensor(value) for name, value in _learnt(model, inner).items()}


def require(model: nn.Module, inner: Optimizer) -> None:
    """Check that a run with this optimizer could be resumed.

    Raises:
        UserError: it steps by more than gradients, or keeps what is neither tensor nor number.
    """
    _learnt(model, inner)


def put(model: nn.Module, inner: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state that `gather` returned."""
    kinds, parameters = _learnt(model, inner), dict(model.named_parameters())
    for name, saved in state.items():
        key, _, place = name.partition(".")
        value = saved.clone() if isinstance(kinds[name], Tensor) else saved.item()
        if key == GROUPS:
            number, _, key = place.partition(".")
            inner.param_groups[int(number)][key] = value
        else:
            parameter = parameters[place]
            on_device = isinstance(value, Tensor) and key != STEP
            inner.state[parameter][key] = value.to(parameter.device) if on_device else value


def _learnt(model: nn.Module, inner: Optimizer) -> dict[str, Value]:
    """Return what `inner` would keep after a step."""
    twin = copy.deepcopy(inner)
    theirs = [parameter for group in twin.param_groups for parameter in group["params"]]
    own = [parameter for group in inner.param_groups for parameter in group["params"]]
    twin.state.clear()
    for parameter in theirs:
        parameter.grad = torch.zeros_like(parameter)
    try:
        twin.step()
    except Exception as error:  # of whatever it misses
        raise UserError(
            f"{type(inner).__name__} does not step by gradients alone ({error}). Choose another."
        ) from error
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return dict(_named(twin, {id(twin_of): names[id(parameter)] for twin_of, parameter in zip(theirs, own)}))


def _tensor(value: Value) -> Tensor:
    """Return a value that `item` gives back; torch would take a number for one of single precision."""
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else torch.as_tensor(value)


def _values(model: nn.Module, inner: Optimizer) -> dict[str, Value]:
    return dict(_named(inner, {id(parameter): name for name, parameter in model.named_parameters()}))


def _named(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Value]]:
    for parameter, kept in optimizer.state.items():
        for key, value in kept.items():
            if not isinstance(value, Tensor | bool | int | float):
                raise UserError(
                    f"{type(optimizer).__name__} keeps {key!r}, a {type(value).__name__}, which a run cannot save to be"
                    " resumed from. Choose another."
                )
            yield f"{key}.{names[id(parameter)]}", value
    for number, group in enumerate(optimizer.param_groups):
        if STEP in group:
            yield f"{GROUPS}.{number}.{STEP}", group[STEP]
