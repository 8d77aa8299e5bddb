"""Data-parallel replicas: every process holds the whole model and a share of the batch."""

import torch
from torch import Tensor, distributed


def replicas() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def average(rows: list[Tensor]) -> Tensor:
    """Stack the layers' totals [3] to [K, 3] and make them those of the global batch, by one all-reduce.

    The processes' gradients are averaged, so a contribution counts 1 / world size of what its own process saw: sums
    of norms are averaged, sums of squared norms divided twice, examples counted together.
    """
    totals = torch.stack(rows)
    world = replicas()
    if world == 1:
        return totals
    distributed.all_reduce(totals)
    return totals / totals.new_tensor([world, world**2, 1.0])
