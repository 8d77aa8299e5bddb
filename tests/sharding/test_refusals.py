"""What is not understood is refused by name, with the remedy; each case in two processes, all in one launch."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from cluster import launch
from losses import squared_loss
from torch import distributed, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import clars
from clars.sharding import support

CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def step(model, optimizer):
    squared_loss(model, torch.ones(4, 3)).backward()
    optimizer.step()


def flat_parameters_afterwards():
    model = network()
    optimizer = clars.LARS(model, lr=1.0)
    step(FullyShardedDataParallel(model, device_id=torch.device("cpu")), optimizer)


def flat_parameters_before():
    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    step(model, clars.LARS(model, lr=1.0))


def views_of_flat_parameters():
    model = network()
    optimizer = clars.LARS(model, lr=1.0)
    step(FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True), optimizer)


def tensor_parallel():
    model = parallelize_module(
        network(), init_device_mesh("cpu", (2,)), {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    clars.bind(clars.LARS(model, lr=1.0), model)


def in_halves(plan):
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    return parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def tensor_parallel_without_bind():
    model = in_halves({"0": ColwiseParallel(), "2": RowwiseParallel()})
    step(model, clars.CLARS(model, lr=1.0))


def tensor_parallel_in_part():
    model = in_halves({"2": RowwiseParallel()})
    optimizer = clars.LARS(model, lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def never_wrapped():
    """Each process steps by its own gradient, and the sums would be averaged."""
    model = network()
    optimizer = clars.CLARS(model, lr=1.0)
    squared_loss(model, torch.full((4, 3), 1.0 + distributed.get_rank())).backward()
    optimizer.step()


def groups_of_one_each():
    model = network()
    groups = [distributed.new_group([rank]) for rank in range(2)]
    optimizer = clars.CLARS(model, lr=1.0)
    squared_loss(model, torch.full((4, 3), 1.0 + distributed.get_rank())).backward()
    clars.bind(optimizer, model, group=groups[distributed.get_rank()])
    optimizer.step()
    raise clars.UserError(f"stepped, ratio {optimizer.layer_stats()['0'].ratio > 0}")


def averages_left_out_later():
    """As post-local SGD does: the second step is taken by each process alone."""
    model = network()
    optimizer = clars.CLARS(model, lr=1.0)
    wrapped = DistributedDataParallel(model)
    x = torch.full((4, 3), 1.0 + distributed.get_rank())
    for averaged in (True, False):
        optimizer.zero_grad()
        with contextlib.nullcontext() if averaged else wrapped.no_sync():
            squared_loss(wrapped, x).backward()
        optimizer.step()


def uneven_batches():
    """Process 1 has fewer."""
    model = network()
    optimizer = clars.CLARS(model, lr=1.0)
    wrapped = DistributedDataParallel(model)
    with Join([wrapped]):
        for _ in range(3 - distributed.get_rank()):
            step(wrapped, optimizer)


def other_factor_later():
    model = fully_shard(network())
    optimizer = clars.CLARS(model, lr=1.0)
    step(model, optimizer)
    model.set_gradient_divide_factor(1.0)
    optimizer.step()


def other_factor():
    model = fully_shard(network())
    model.set_gradient_divide_factor(1.0)
    clars.bind(clars.CLARS(model, lr=1.0), model)


def outside_of_fully_shard():
    model = network()
    fully_shard(model, ignored_params={model[2].bias})
    step(model, clars.CLARS(model, lr=1.0))


class Late(nn.Module):
    """The second layer has no part in the forward pass."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        return self.first(x)


def used_late(model, average):
    """By the loss, from the third step on."""
    optimizer = clars.CLARS(model, lr=1.0)
    for number in range(3):
        loss = squared_loss(model, torch.ones(4, 3))
        if number == 2:
            loss = loss + model.second.weight.square().sum() + model.second.bias.sum()
        loss.backward()
        average(model)
        optimizer.step()
        optimizer.zero_grad()


def used_late_by_replicas():
    def average(model):
        for parameter in model.parameters():
            if parameter.grad is not None:
                distributed.all_reduce(parameter.grad, distributed.ReduceOp.AVG)

    used_late(Late(), average)


def used_late_and_cut():
    used_late(fully_shard(Late()), lambda model: None)


def engine_of(optimizer_of=clars.CLARS, zero=None, bound=True, **config):
    import deepspeed

    model = network()
    optimizer = optimizer_of(model, lr=1.0)
    config = CONFIG | {"zero_optimization": {"stage": 2} | (zero or {})} | config
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if bound:
        clars.bind(optimizer, engine)
    return engine, optimizer


def engine_step(engine):
    dtype = next(engine.module.parameters()).dtype
    engine.backward(squared_loss(engine, torch.ones(4, 3, dtype=dtype)).float())
    engine.step()


def not_bound():
    engine_step(engine_of(bound=False)[0])


def not_bound_stage_3():
    engine_step(engine_of(zero={"stage": 3}, bound=False)[0])


def own_step():
    engine_of()[1].step()


def replaced_optimizer():
    engine, _ = engine_of(lambda model, lr: torch.optim.SGD(model.parameters(), lr), bound=False)
    clars.bind(clars.CLARS(engine.module, lr=1.0), engine)


def no_layerwise_optimizer():
    model = network()
    clars.bind(torch.optim.Adam(model.parameters()), model)


def other_places():
    engine, _ = engine_of()
    partition = engine.optimizer.single_partition_of_fp32_groups[0]
    partition.data = partition.data.roll(1)
    engine_step(engine)


def weights_changed_behind_it():
    engine, _ = engine_of()
    for parameter in engine.module.parameters():
        parameter.data.add_(1.0)
    engine_step(engine)


def other_scaling():
    engine, _ = engine_of()
    zero = engine.optimizer
    zero.unscale_and_clip_grads = lambda grads, norm: [grad.mul_(0.5) for grad in grads]
    engine_step(engine)


def other_scaling_after_an_overflow():
    import deepspeed

    deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True
    engine, optimizer = engine_of(fp16={"enabled": True, "initial_scale_power": 30, "hysteresis": 1})
    unscale = engine.optimizer.unscale_and_clip_grads
    engine_step(engine)
    assert not optimizer.layer_stats(), "the first step should overflow"
    engine.optimizer.unscale_and_clip_grads = lambda grads, norm: [unscale(grads, norm), *map(halve, grads)]
    for _ in range(30):
        engine_step(engine)


def halve(gradient):
    return gradient.mul_(0.5)


def other_gradients():
    engine, _ = engine_of()
    zero = engine.optimizer
    reduced = zero.averaged_gradients
    engine.backward(squared_loss(engine, torch.ones(4, 3)))
    for number, tensors in reduced.items():
        reduced[number] = [tensor.flatten()[:1] for tensor in tensors]
    engine.step()


def linear_replaced_again():
    engine, _ = engine_of(zero={"stage": 3})
    engine_step(engine)
    engine_of(zero={"stage": 3}, bound=False)
    engine_step(engine)


def without_zero():
    engine_of(zero={"stage": 0}, bf16={"enabled": True})


EXPECTED = {
    flat_parameters_afterwards: r"'weight' of layer '0' was replaced or sharded",
    flat_parameters_before: r"FSDP version 1.*Use fully_shard",
    views_of_flat_parameters: "'0.weight' has 15 elements; 30 should be found in .* 2 processes .*, and 15 were",
    tensor_parallel: r"fully_shard was not applied to it|no part of what fully_shard cut",
    tensor_parallel_without_bind: r"'0': computes with .* distributed tensors|'0', '2': computes with",
    tensor_parallel_in_part: "fully_shard was not applied to it|tensor parallelism",
    never_wrapped: "'0' has the norm .* in one of 2 processes and .* in another.*DistributedDataParallel",
    groups_of_one_each: "stepped, ratio True",
    averages_left_out_later: "has the norm .* in one of 2 processes",
    uneven_batches: "Join .*is not supported.*even_batches=True",
    other_factor: "set_gradient_divide_factor",
    other_factor_later: "set_gradient_divide_factor",
    outside_of_fully_shard: "'2.bias' is no part of what fully_shard cut",
    no_layerwise_optimizer: "Adam takes the steps",
    used_late_by_replicas: "'second' has a gradient but no per-example norms",
    used_late_and_cut: "'second' has a gradient but no per-example norms",
}
WITH_DEEPSPEED = {
    not_bound: r"clars.bind\(optimizer, model\) after deepspeed.initialize",
    not_bound_stage_3: r"clars.bind\(optimizer, model\) after deepspeed.initialize",
    own_step: r"call engine.step\(\)",
    replaced_optimizer: "SGD takes the steps, .*zero_force_ds_cpu_optimizer",
    other_places: r"'0.weight' has 15 elements; 15 should be found .*zero2.*, and \d were",
    weights_changed_behind_it: "'0.weight' has 15 elements; 15 should be found .*, and 0 were",
    other_scaling: "scales or clips in a way that is not understood",
    other_scaling_after_an_overflow: "scales or clips in a way that is not understood",
    other_gradients: "in a way that is not understood",
    linear_replaced_again: "another function stands in the place of torch's own",
    without_zero: "was replaced or sharded",
}


def refusal(function, rank, world):
    try:
        function()
    except clars.UserError as error:
        return str(error)
    except Exception as error:
        return repr(error)
    return "nothing was raised"


def check(folder, expected):
    for (function, pattern), messages in zip(expected.items(), launch(2, folder, refusal, expected)):
        for message in messages:
            with pytest.raises(clars.UserError, match=pattern):
                raise clars.UserError(f"{function.__name__}: {message}")


def test_of_torch(tmp_path):
    check(tmp_path, EXPECTED)


@pytest.mark.deepspeed
def test_of_deepspeed(tmp_path):
    check(tmp_path, WITH_DEEPSPEED)


class DeepSpeedZeroOptimizer(SimpleNamespace):
    pass


class MiCS_Optimizer(SimpleNamespace):
    pass


@pytest.fixture
def installed(monkeypatch):
    """A function that lets a version of DeepSpeed be the one that is installed."""
    return lambda number: monkeypatch.setattr(support, "version", lambda package: number)


@pytest.mark.parametrize(
    "found, remedy",
    [
        ({"has_moe_layers": True}, "a dense model"),
        ({"sequence_parallel_size": 2}, "data parallelism alone"),
        ({"mpu": object()}, "data parallelism alone"),
        ({"torch_autocast_gradscaler": object()}, "bfloat16"),
        ({"backup_optimizer": object()}, '"ratio": 1.0'),
        ({"swap_optimizer": True}, '"device": "cpu"'),
        ({"low_precision_master_weights_and_grads": True}, "master weights in float32"),
        ({"zenflow": True}, "ZeRO without it"),
    ],
)
def test_kinds_of_parallelism(found, remedy, installed):
    installed("0.19.8")
    support.check(DeepSpeedZeroOptimizer())
    with pytest.raises(clars.UserError, match=r"MiCS_Optimizer is not supported.*ZeRO stage 1, 2 or 3"):
        support.check(MiCS_Optimizer())
    with pytest.raises(clars.UserError, match=remedy):
        support.check(DeepSpeedZeroOptimizer(**found))


def test_versions(installed):
    installed("0.14.5")
    with pytest.raises(clars.UserError, match=r"version 0.14.5 is not supported.*'deepspeed>="):
        support.check(DeepSpeedZeroOptimizer())
    installed("9.0.0+abc")
    with pytest.warns(UserWarning, match="9.0.0.* is newer than .*, the newest tested"):
        support.check(DeepSpeedZeroOptimizer())
