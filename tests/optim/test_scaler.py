"""Loss scaling by torch.amp.GradScaler: the same trajectory as without, overflowed steps skipped."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from conftest import squared_loss
from timm.utils import NativeScaler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import clars


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()


def new_scaler(**kwargs):
    return torch.amp.GradScaler("cpu", **{"init_scale": 4096.0, "growth_interval": 2} | kwargs)


def run(model, batches, *, scaler=None, clip=None, make=clars.CLARS, wrap=lambda optimizer: optimizer):
    optimizer = make(model, lr=1.0)
    stepping = wrap(optimizer)
    for x in batches:
        optimizer.zero_grad()
        loss = squared_loss(model, x)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler and clip:
            scaler.unscale_(stepping)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler:
            scaler.step(stepping)
            scaler.update()
        else:
            stepping.step()
    return list(model.parameters()), optimizer


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("make", [clars.CLARS, clars.LARS, clars.LAMB])
def test_scaled_and_unscaled_agree(clip, make):
    """Whether the scaler unscales in its step or was told to before, nobody tells the optimizer."""
    model, batches = network(), [torch.randn(5, 3).double() for _ in range(4)]
    twin = copy.deepcopy(model)
    plain, _ = run(model, batches, clip=clip, make=make)
    scaled, _ = run(twin, batches, scaler=new_scaler(), clip=clip, make=make)
    torch.testing.assert_close(scaled, plain, rtol=1e-11, atol=1e-14)


def test_a_disabled_scaler():
    model, batches = network(), [torch.randn(5, 3).double() for _ in range(2)]
    twin = copy.deepcopy(model)
    plain, _ = run(model, batches)
    scaled, _ = run(twin, batches, scaler=new_scaler(enabled=False))
    torch.testing.assert_close(scaled, plain, rtol=0, atol=0)


def test_a_scaler_around_a_step_that_a_schedule_has_wrapped():
    model, batches = network(), [torch.randn(5, 3).double() for _ in range(3)]
    twin = copy.deepcopy(model)

    def scheduled(optimizer):
        LambdaLR(optimizer, lambda step: 1.0)  # which puts a wrapper around step()
        return optimizer

    plain, _ = run(model, batches)
    scaled, _ = run(twin, batches, scaler=new_scaler(), wrap=scheduled)
    torch.testing.assert_close(scaled, plain, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_optimizer_that_accelerate_puts_around_ours(clip):
    model, batches = network(), [torch.randn(5, 3).double() for _ in range(3)]
    twin, scaler = copy.deepcopy(model), new_scaler()
    plain, _ = run(model, batches, clip=clip)
    Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(clars.CLARS(twin, lr=1.0), device_placement=False, scaler=scaler)
    for x in batches:
        optimizer.zero_grad()
        scaler.scale(squared_loss(twin, x)).backward()
        if clip:
            scaler.unscale_(optimizer.optimizer)
            nn.utils.clip_grad_norm_(twin.parameters(), clip)
        optimizer.step()
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.testing.assert_close(list(twin.parameters()), plain, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_scaler_of_timm(clip):
    """Its clipping was refused, with a remedy that needed a private attribute of it."""
    model, batches = network(), [torch.randn(5, 3).double() for _ in range(3)]
    twin, scaler = copy.deepcopy(model), NativeScaler(device="cpu")
    plain, _ = run(model, batches, clip=clip)
    optimizer = clars.CLARS(twin, lr=1.0)
    for x in batches:
        optimizer.zero_grad()
        scaler(squared_loss(twin, x), optimizer, clip_grad=clip, parameters=twin.parameters())
    torch.testing.assert_close(list(twin.parameters()), plain, rtol=1e-11, atol=1e-14)


def test_accumulation_under_a_scaler():
    model, batches = network(), [torch.randn(6, 3).double() for _ in range(3)]
    twin, scaler = copy.deepcopy(model), new_scaler()
    plain, _ = run(model, batches)
    optimizer = clars.CLARS(twin, lr=1.0)
    for x in batches:
        optimizer.zero_grad()
        for part in x.split(2):
            scaler.scale(squared_loss(twin, part) / 3).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(list(twin.parameters()), plain, rtol=1e-11, atol=1e-14)


def test_an_overflowed_step_is_skipped_and_leaves_no_norms_behind():
    model, x = network(), torch.randn(4, 3).double()
    optimizer, scaler = clars.CLARS(model, lr=1.0), new_scaler(init_scale=2.0)
    before = [p.detach().clone() for p in model.parameters()]
    for clear in (optimizer.zero_grad, model.zero_grad):
        scaler.scale(squared_loss(model, x * float("inf"))).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
        clear()
        assert optimizer.norms.totals() == {}
    assert scaler.get_scale() == 0.5


def test_a_skipped_step_has_no_statistics():
    model, x = network(), torch.randn(4, 3).double()
    optimizer, scaler = clars.CLARS(model, lr=1.0), new_scaler(init_scale=2.0)
    for scale, taken in ((1.0, True), (float("inf"), False), (1.0, True)):
        scaler.scale(squared_loss(model, x * scale)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        optimizer.zero_grad()
        assert bool(optimizer.layer_stats()) == taken


def test_a_skipped_step_leaves_moments_and_their_count_alone():
    model, x = network(), torch.randn(4, 3).double()
    twin, scaler = copy.deepcopy(model), new_scaler(init_scale=2.0)
    optimizer = clars.LAMB(model, lr=0.1)
    for scale in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(squared_loss(model, x * scale)).backward()
        scaler.step(optimizer)
        scaler.update()
    expected, plain = run(twin, [x, x], make=lambda model, lr: clars.LAMB(model, lr=0.1))
    torch.testing.assert_close(list(model.parameters()), expected, rtol=1e-12, atol=1e-15)
    assert {group["step"] for group in optimizer.param_groups} == {2}
    for p, q in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(optimizer.state[p], plain.state[q], rtol=1e-12, atol=0)
