"""Groups of examples and the noise scale of the global batch, under every strategy as in one process."""

import contextlib
from typing import NamedTuple

import pytest
import torch
from cluster import launch
from losses import squared_loss
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import clars

GROUP, BATCH, STEPS = 4, 32, 3


class Case(NamedTuple):
    """One training: the strategy, micro-batches of a step, and what takes the steps, as what norms are formed."""

    strategy: str
    accumulation: int = 1
    optimizer: str = "SGD"  # or CLARS, whose norms are used
    estimator: str = "exact"


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.GroupNorm(1, 5), nn.ReLU(), nn.Flatten(), nn.Linear(45, 7), nn.Linear(7, 3)
    )


def batches():
    made = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, 2, 5, 5, generator=made) for _ in range(STEPS)]


def made(case, model):
    """The optimizer, and the options of the noise scale beside it."""
    options = {"estimator": case.estimator, "group": GROUP} if case.estimator == "group" else {}
    if case.optimizer == "CLARS":
        optimizer = clars.CLARS(model, lr=2.0, trust_coefficient=0.02, **options)
        return optimizer, {"norms": optimizer.norms}
    kinds = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}
    return kinds[case.optimizer](model.parameters(), lr=0.01), options


def train(case, rank=0, world=1):
    """Return for each step the noise scales, and under CLARS S by layer."""
    model = network()
    optimizer, options = None, {}
    if case.strategy == "fsdp2":
        for module in (model[0], model[4], model):
            fully_shard(module)
    optimizer, options = made(case, model)
    wrapped = DistributedDataParallel(model) if case.strategy == "ddp" else model
    if case.strategy.startswith("zero"):
        wrapped = engine_of(case, model, optimizer, world)
    if case.optimizer == "CLARS":
        clars.bind(optimizer, wrapped)
    noise, found = clars.NoiseScale(wrapped, **options), []
    for batch in batches():
        parts = batch.view(case.accumulation, world, -1, *batch.shape[1:])[:, rank]
        for number, part in enumerate(parts):
            backward(case, wrapped, part, number == len(parts) - 1)
            noise.update()
            if case.strategy.startswith("zero"):
                wrapped.step()
        if not case.strategy.startswith("zero"):
            optimizer.step()
        sums = {}
        if case.optimizer == "CLARS":
            sums = {name: stats.example_norm_sum for name, stats in optimizer.layer_stats().items()}
        found.append((noise.batch_size(), noise.layers(), sums))
        if not case.strategy.startswith("zero"):
            optimizer.zero_grad()
    return found


def engine_of(case, model, optimizer, world):
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": BATCH // case.accumulation // world,
        "gradient_accumulation_steps": case.accumulation,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": int(case.strategy[-1]), "reduce_bucket_size": 1000},
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def backward(case, wrapped, part, last):
    if case.strategy.startswith("zero"):
        wrapped.backward(squared_loss(wrapped, part))
        return
    if case.strategy == "fsdp2":
        wrapped.set_requires_gradient_sync(last)
    with wrapped.no_sync() if case.strategy == "ddp" and not last else contextlib.nullcontext():
        (squared_loss(wrapped, part) / case.accumulation).backward()


def check(tmp_path, strategies):
    options = [
        (1, "SGD", "exact"),
        (2, "AdamW", "exact"),
        (2, "CLARS", "group"),
        (1, "CLARS", "exact"),
        (2, "SGD", "group"),
    ]
    cases = [Case(strategy, *each) for strategy in strategies for each in options]
    for case, ranks in zip(cases, launch(2, tmp_path, train, cases)):
        expected = train(case._replace(strategy="single"))
        assert ranks[0] == ranks[1], case
        for (whole, layers, sums), (wanted, wanted_layers, wanted_sums) in zip(ranks[0], expected):
            assert whole == pytest.approx(wanted, rel=2e-4), case
            assert layers == pytest.approx(wanted_layers, rel=2e-3), case
            assert sums == pytest.approx(wanted_sums, rel=1e-5), case


def test_replicas_and_fully_sharded(tmp_path):
    check(tmp_path, ["ddp", "fsdp2"])


@pytest.mark.deepspeed
def test_zero(tmp_path):
    check(tmp_path, ["zero1", "zero2", "zero3"])
