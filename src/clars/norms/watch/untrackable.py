"""Layers whose calls cannot be watched, as is told before the first of them."""

from collections.abc import Sequence

import torch
from torch import nn

from clars.errors import UnsupportedLayerError
from clars.layers import Layer

COMPUTED = (
    "that was a parameter when the tracking began and is computed from other tensors now (pruning, weight_norm or "
    "another parametrization, torch.func.functional_call), so that its norm would be none of a parameter's."
)
TIED = (
    "Each example's contributions through both must be summed before the norm is taken, for which there is no rule. "
    "Untie the weights."
)


def refuse_scripted(tracked: Sequence[Layer]) -> None:
    """Refuse layers of torch.jit.script: what they compute is out of Python's sight."""
    scripted = [layer.name for layer in tracked if isinstance(layer.module, torch.jit.ScriptModule)]
    if scripted:
        what = "is compiled by torch.jit.script, which shows none of its operations. Track the model it was made from."
        raise UnsupportedLayerError(dict.fromkeys(scripted, what))


def refuse_shared(model: nn.Module, tracked: Sequence[Layer]) -> None:
    """Refuse parameters with two names: their uses would have to be summed before the norm."""
    owners: dict[int, str] = {}
    wanted = {id(parameter): layer.name for layer in tracked for parameter in layer.parameters.values()}
    problems = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name and id(parameter) in wanted:
            problems[wanted[id(parameter)]] = f"has one parameter under the names {first!r} and {name!r}. {TIED}"
    if problems:
        raise UnsupportedLayerError(problems)
