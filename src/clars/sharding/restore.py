"""Whole weights put back into what a strategy has made of them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clars.sharding.find import layout_of, unwrapped


@torch.no_grad()
def put_weights(optimizer: Any, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the tensors that the optimizer steps the values of `weights`, whole tensors by name, in all processes.

    Load them into the model as well, before a strategy is put around it: this is for what a strategy keeps beside the
    model's own parameters, such as master weights, made from parameters of lower precision.
    """
    inner = list(unwrapped(optimizer))[-1]
    layout = getattr(inner, "known_layout", None) or layout_of(optimizer, model)
    for shard in layout.shards:
        shard.view(shard.owner.detach()).copy_(shard.part_of(weights[shard.name]))
