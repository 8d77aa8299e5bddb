"""Loss scaling by torch.amp.GradScaler: the same trajectory as without, overflowed steps skipped."""

import copy

import pytest
import torch
from conftest import squared_loss
from torch import nn

import clars


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()


def run(model, batches, *, scaler=None, clip=None, make=clars.CLARS):
    optimizer = make(model, lr=1.0)
    optimizer.grad_scaler = scaler
    for x in batches:
        optimizer.zero_grad()
        loss = squared_loss(model, x)
        (scaler.scale(loss) if scaler else loss).backward()
        if scaler and clip:
            scaler.unscale_(optimizer)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return list(model.parameters()), optimizer


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("make", [clars.CLARS, clars.LARS])
def test_scaled_and_unscaled_agree(clip, make):
    model, batches = network(), [torch.randn(5, 3).double() for _ in range(4)]
    twin = copy.deepcopy(model)
    plain, _ = run(model, batches, clip=clip, make=make)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0, growth_interval=2)
    scaled, _ = run(twin, batches, scaler=scaler, clip=clip, make=make)
    torch.testing.assert_close(scaled, plain, rtol=1e-11, atol=1e-14)


def test_explicit_unscaling_needs_the_scaler():
    model = network()
    optimizer, scaler = clars.CLARS(model, lr=1.0), torch.amp.GradScaler("cpu")
    scaler.scale(squared_loss(model, torch.randn(2, 3).double())).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(ValueError, match=r"optimizer.grad_scaler = scaler"):
        scaler.step(optimizer)


def test_an_overflowed_step_is_skipped_and_leaves_no_norms_behind():
    model, x = network(), torch.randn(4, 3).double()
    optimizer = clars.CLARS(model, lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(squared_loss(model, x * float("inf"))).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    assert scaler.get_scale() == 1.0
    assert optimizer.norms.totals() == {}
    assert optimizer.layer_stats() == {}
