"""Layers whose calls cannot be watched, as is told before the first of them."""

from collections.abc import Sequence

import torch

from clars.errors import UnsupportedLayerError
from clars.layers import Layer

COMPUTED = (
    "that was a parameter when the tracking began and is computed from other tensors now (pruning, weight_norm or "
    "another parametrization, torch.func.functional_call), so that its norm would be none of a parameter's."
)
TIED = "Tie weights before the tracking begins, so that they are one layer's."


def refuse_scripted(tracked: Sequence[Layer]) -> None:
    """Refuse layers of torch.jit.script: what they compute is out of Python's sight."""
    scripted = [layer.name for layer in tracked if isinstance(layer.module, torch.jit.ScriptModule)]
    if scripted:
        what = "is compiled by torch.jit.script, which shows none of its operations. Track the model it was made from."
        raise UnsupportedLayerError(dict.fromkeys(scripted, what))
