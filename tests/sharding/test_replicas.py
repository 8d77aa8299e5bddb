"""What data-parallel replicas can do that one process cannot."""

import torch
from losses import squared_loss
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import clars

WORLD = 2


class Sometimes(nn.Module):
    """The second layer runs on one process only, as a dropped layer or an expert may."""

    def __init__(self):
        super().__init__()
        self.always, self.seldom = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.seldom(self.always(x)) if distributed.get_rank() == 0 else self.always(x)


def one_rank_with_a_layer_less(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.manual_seed(0)
    model = Sometimes()
    optimizer = clars.CLARS(model, lr=1.0)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    squared_loss(wrapped, torch.randn(4, 3)).backward()
    optimizer.step()
    torch.save([p.detach() for p in model.parameters()], f"{folder}/{rank}.pt")
    assert optimizer.layer_stats()["seldom"].example_norm_sum > 0
    distributed.destroy_process_group()


def test_a_layer_that_only_one_process_uses(tmp_path):
    multiprocessing.spawn(one_rank_with_a_layer_less, (str(tmp_path),), nprocs=WORLD)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD))
    assert all(torch.equal(a, b) for a, b in zip(one, two))
