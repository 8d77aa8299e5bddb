"""What data-parallel replicas can do that one process cannot."""

import torch
from cluster import launch
from losses import squared_loss
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import clars


class Sometimes(nn.Module):
    """The second layer runs on one process only, as a dropped layer or an expert may."""

    def __init__(self):
        super().__init__()
        self.always, self.seldom = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.seldom(self.always(x)) if distributed.get_rank() == 0 else self.always(x)


def one_step(case, rank, world):
    torch.manual_seed(0)
    model = Sometimes()
    optimizer = clars.CLARS(model, lr=1.0)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    squared_loss(wrapped, torch.randn(4, 3)).backward()
    optimizer.step()
    assert optimizer.layer_stats()["seldom"].example_norm_sum > 0
    return [p.detach() for p in model.parameters()]


def test_a_layer_that_only_one_process_uses(tmp_path):
    ((one, two),) = launch(2, tmp_path, one_step, [None])
    assert all(torch.equal(a, b) for a, b in zip(one, two))
