"""What an optimizer carries from step to step, as whole tensors by name: momentum, or averages and numbers of steps."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from clars.lab.training import foreign
from clars.optim.layerwise import LayerwiseOptimizer
from clars.sharding.find import plain_model
from clars.sharding.state import gather_momentum, put_momentum

STEP = "step"
OURS = (SGD, LayerwiseOptimizer)  # the others run where parameters are whole (see `build.require_strategy`)


def gather(optimizer: Any, model: nn.Module, inner: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of `inner`, which steps beneath `optimizer`; see `gather_momentum`."""
    if not isinstance(inner, OURS):
        return foreign.gather(plain_model(model), inner)
    names = _buffers(inner)
    if len(names) == 1:
        return gather_momentum(optimizer, model, *names)
    found = {name: gather_momentum(optimizer, model, name) for name in names}
    whole = {f"{name}.{parameter}": tensor for name, tensors in found.items() for parameter, tensor in tensors.items()}
    return whole | {STEP: torch.tensor(int(inner.param_groups[0].get(STEP, 0)))} if whole else {}


def expected(model: nn.Module, inner: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a tensor of the right shape for each name that `gather` may return."""
    if not isinstance(inner, OURS):
        return foreign.expected(model, inner)
    found, names = dict(model.named_parameters()), _buffers(inner)
    if len(names) == 1:
        return found
    whole = {f"{name}.{parameter}": tensor for name in names for parameter, tensor in found.items()}
    return whole | {STEP: torch.zeros(())}


def put(
    optimizer: Any, model: nn.Module, inner: torch.optim.Optimizer, state: Mapping[str, Tensor], steps: int
) -> None:
    """Give `inner` the state that `gather` returned after so many steps.

    Of these, a loss scale may have left some out; states of older versions do not say how many.
    """
    if not isinstance(inner, OURS):
        foreign.put(plain_model(model), inner, state)
        return
    names = _buffers(inner)
    if len(names) == 1:
        put_momentum(optimizer, model, state, *names)
        return
    for name in names:
        own = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        put_momentum(optimizer, model, own, name)
    taken = int(state.get(STEP, steps))
    for group in inner.param_groups:
        group[STEP] = taken


def _buffers(inner: torch.optim.Optimizer) -> tuple[str, ...]:
    """Return the names of the tensors that an optimizer keeps of a parameter."""
    return getattr(inner, "buffers", ("momentum_buffer",))
