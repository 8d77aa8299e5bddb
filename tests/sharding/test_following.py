"""S belongs to what is in the gradient under every strategy, whoever drops it: the user, or the strategy itself.

What a strategy does with a gradient that is dropped half way is its own affair (FSDP2 keeps what was not averaged
yet, ZeRO-2 what it has moved away). So nothing is said here of that: at the step, the gradient tells which backward
passes it is made of, and S must be that of these passes.
"""

from typing import NamedTuple

import pytest
import torch
from cluster import launch
from following import DROPS
from losses import squared_loss
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import clars

needs_deepspeed = pytest.mark.deepspeed


class Case(NamedTuple):
    """Backward passes of batches 0, 1 ... with what happens between them, each a word; see `follow`."""

    strategy: str
    words: str
    accumulation: int = 1
    zero: dict = {}  # noqa: RUF012  never changed


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator) for _ in range(3)]


def engine_of(case, model, optimizer):
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": case.accumulation,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": int(case.strategy[-1]), "reduce_bucket_size": 1000, **case.zero},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    clars.bind(optimizer, engine)
    return engine


def whole_gradient(optimizer, shards):
    """The gradient of the first layer's weight as the step is about to use it."""
    whole = torch.zeros(5, 6)
    for shard in shards:
        if shard.name == "0.weight":
            shard.part_of(whole).copy_(optimizer.layout.gradient(shard))
    if optimizer.layout.sharded:
        distributed.all_reduce(whole)
    return whole.flatten()


def follow(case, rank, world):
    """Return, for each step, the gradient that it used and S by layer.

    Words: "backward", "unsynced" (a backward pass after which nothing is averaged), "step", or a way of dropping.
    """
    model = network()
    optimizer = clars.CLARS(model, lr=0.0, momentum=0.0, weight_decay=0.0)
    wrapped, seen, found, number = model, [], [], 0
    if case.strategy == "ddp":
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view="view" in case.zero)
    elif case.strategy == "fsdp2":
        for module in (model[0], model):
            fully_shard(module)
        clars.bind(optimizer, model)
    else:
        wrapped = engine_of(case, model, optimizer)
    measure = optimizer.measure

    def noting(shards):
        seen.append(whole_gradient(optimizer, shards))
        return measure(shards)

    optimizer.measure = noting
    for word in case.words.split(", "):
        if word in ("backward", "unsynced"):
            _backward(case, wrapped, batches()[number].view(world, -1, 6)[rank], word == "backward")
            number += 1
        elif word == "step":
            before = len(seen)
            wrapped.step() if case.strategy.startswith("zero") else optimizer.step()
            if len(seen) > before:
                found.append({name: row.example_norm_sum for name, row in optimizer.layer_stats().items()})
        elif word == "engine.zero_grad()":
            wrapped.zero_grad()
        elif word == "engine.optimizer.zero_grad()":
            wrapped.optimizer.zero_grad()
        elif word == "optimizer.zero_grad()":
            optimizer.zero_grad()
        else:
            DROPS[word](model)
    return list(zip(seen, found))


def _backward(case, wrapped, x, synced):
    if case.strategy == "ddp":
        wrapped.require_backward_grad_sync = synced
    elif case.strategy == "fsdp2":
        wrapped.set_requires_gradient_sync(synced)
    loss = squared_loss(wrapped, x)
    wrapped.backward(loss) if case.strategy.startswith("zero") else loss.backward()


def check(tmp_path, cases):
    gradients, sums = [], []
    for x in batches():
        norms = clars.ExampleNorms(model := network())
        squared_loss(model, x).backward()
        gradients.append(model[0].weight.grad.flatten())
        sums.append(norms.sums())
    for case, results in zip(cases, launch(2, tmp_path, follow, cases)):
        for steps in results:
            assert steps, case
            for gradient, found in steps:
                parts = torch.linalg.lstsq(torch.stack(gradients, 1), gradient.unsqueeze(1)).solution.flatten()
                torch.testing.assert_close(torch.stack(gradients, 1) @ parts, gradient, rtol=1e-4, atol=1e-5)
                for name, value in found.items():
                    wanted = sum(float(part) * float(own[name]) for part, own in zip(parts, sums))
                    assert value == pytest.approx(wanted, rel=1e-4), (case, name, parts)


def test_replicas_and_fully_sharded(tmp_path):
    dropped = [*DROPS, "optimizer.zero_grad()"]
    words = [f"{first}, {drop}, backward, step" for drop in dropped for first in ("backward", "unsynced")]
    # what was clipped before it was averaged is no sum of the passes' gradients in equal parts
    words = [each for each in words if "clipped" not in each]
    again = ["backward, step, step", "unsynced, unsynced, backward, step", "backward, step, backward, step"]
    views = Case("ddp", "backward, grad.zero_(), backward, step", zero={"view": True})
    check(tmp_path, [*(Case(strategy, each) for strategy in ("ddp", "fsdp2") for each in words + again), views])


PATTERNS = {
    1: ["backward, {drop}, backward, step", "backward, step, {drop}, backward, step"],
    2: ["backward, step, {drop}, backward, step", "backward, step, backward, {drop}, backward, step"],
}
ZERO_DROPS = ("nothing", "engine.zero_grad()", "engine.optimizer.zero_grad()", "grad = None", "grad.zero_()")
OPTIONS = ({}, {"offload_optimizer": {"device": "cpu"}})


@needs_deepspeed
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_zero(strategy, tmp_path):
    check(
        tmp_path,
        [
            Case(strategy, words.format(drop=drop), accumulation, zero)
            for accumulation, patterns in PATTERNS.items()
            for words in patterns
            for drop in ZERO_DROPS
            for zero in OPTIONS
        ],
    )
