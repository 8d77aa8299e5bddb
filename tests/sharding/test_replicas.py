"""Two data-parallel processes against one, on the same global batch."""

import copy

import pytest
import torch
from conftest import squared_loss
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import clars

STEPS, WORLD = 10, 2


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.GroupNorm(5, 5), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(45, 3), nn.Linear(3, 1)
    )


def batches():
    torch.manual_seed(1)
    return [torch.randn(8, 2, 5, 5) for _ in range(STEPS)]


def train(model, optimizer, batches, accumulation=1):
    for batch in batches:
        optimizer.zero_grad()
        for part in batch.chunk(accumulation):
            (squared_loss(model, part) / accumulation).backward()
        optimizer.step()
    stats = {name: tuple(row) for name, row in optimizer.layer_stats().items()}
    return {name: p.detach().clone() for name, p in model.named_parameters()}, stats


def one_rank(rank, folder, method, accumulation):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    model = network()
    optimizer = getattr(clars, method)(model, lr=20.0)
    reduced = 0
    all_reduce = distributed.all_reduce

    def counted(*args, **kwargs):
        nonlocal reduced
        reduced += 1
        return all_reduce(*args, **kwargs)

    distributed.all_reduce = counted
    own = [batch.view(accumulation, WORLD, -1, 2, 5, 5)[:, rank].flatten(0, 1) for batch in batches()]
    weights, stats = train(DistributedDataParallel(model), optimizer, own, accumulation)
    torch.save({"weights": weights, "stats": stats, "reduced": reduced}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


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


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", ["CLARS", "LARS"])
def test_two_processes_equal_one(method, accumulation, tmp_path):
    model = network()
    weights, stats = train(model, getattr(clars, method)(model, lr=20.0), batches(), accumulation)
    start = copy.deepcopy(network().state_dict())
    multiprocessing.spawn(one_rank, (str(tmp_path), method, accumulation), nprocs=WORLD)
    for rank in range(WORLD):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in weights.items():
            assert not torch.equal(value, start[name])
            torch.testing.assert_close(got["weights"][f"module.{name}"], value, rtol=1e-5, atol=1e-7)
        for name, row in stats.items():
            measured = [value for value in got["stats"][name] if value is not None]
            assert measured == pytest.approx([value for value in row if value is not None], rel=1e-4)
        assert got["reduced"] == (STEPS if method == "CLARS" else 0)  # one collective a step of our own
