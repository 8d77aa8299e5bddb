"""What an optimizer carries from step to step, as whole tensors by name: momentum, and LAMB's two averages."""

from typing import Any

import torch
from timm.optim import Lamb
from torch import Tensor, nn

from clars.sharding.state import gather_momentum, put_momentum

_AVERAGES = ("exp_avg", "exp_avg_sq")


def gather(optimizer: Any, model: nn.Module, inner: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of `inner`, which steps beneath `optimizer`; see `gather_momentum`."""
    if not isinstance(inner, Lamb):
        return gather_momentum(optimizer, model)
    found = {key: gather_momentum(optimizer, model, key) for key in _AVERAGES}
    return {f"{key}.{name}": tensor for key, tensors in found.items() for name, tensor in tensors.items()}


def expected(model: nn.Module, inner: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return a tensor of the right shape for each name that `gather` may return."""
    found = dict(model.named_parameters())
    if not isinstance(inner, Lamb):
        return found
    return {f"{key}.{name}": parameter for key in _AVERAGES for name, parameter in found.items()}


def put(optimizer: Any, model: nn.Module, inner: torch.optim.Optimizer, state: dict[str, Tensor], steps: int) -> None:
    """Give `inner` the state that `gather` returned after so many steps."""
    if not isinstance(inner, Lamb):
        put_momentum(optimizer, model, state)
        return
    for key in _AVERAGES:
        own = {name.removeprefix(f"{key}."): tensor for name, tensor in state.items() if name.startswith(f"{key}.")}
        put_momentum(optimizer, model, own, key)
    for group in inner.param_groups:
        group["step"] = torch.tensor(float(steps))
