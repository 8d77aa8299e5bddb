"""Mistakes that were made once."""

import threading

import pytest
import torch
from conftest import squared_loss
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clars


def sums_of(model, *batch, loss_fn=squared_loss):
    norms = clars.ExampleNorms(model)
    loss_fn(model, *batch).backward()
    found = norms.sums()
    norms.remove()
    model.zero_grad()
    return found


@pytest.mark.parametrize("compiles", [False, True])
def test_norms_stay_in_full_precision_where_the_backward_runs_inside_autocast(compiles):
    """The sums of squares of a BatchNorm were formed in half precision: S was 3 % of what it is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    x = 1e-2 * torch.randn(6, 3, 8, 8)
    sums = []
    for inside in (False, True):
        norms = clars.ExampleNorms(model)
        run = torch.compile(model, backend="aot_eager") if compiles else model
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x).square().mean() * 1e-3
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        sums.append(norms.sums())
        norms.remove()
        model.zero_grad()
        torch._dynamo.reset()
    reference = sums_of(model, x, loss_fn=lambda model, x: model(x).square().mean() * 1e-3)
    for name, total in reference.items():
        for found in sums:
            torch.testing.assert_close(found[name], total, rtol=0.05, atol=0)


class Borrowing(nn.Module):
    """Uses a child's square weight outside of the child's own forward."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(x, self.fc.weight, self.fc.bias)


def test_a_checkpoint_whose_recomputation_is_not_tracked():
    """What the plain function saved went into the places of what the tracked one had: wrong gradients in silence."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pre, self.inner = nn.Linear(8, 8), Borrowing()

        def forward(self, x):
            return checkpoint(self.inner, self.pre(x), use_reentrant=False)

    model, x = Model(), torch.randn(5, 8)
    model(x).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    try:
        model(x).square().sum().backward()
    except torch.utils.checkpoint.CheckpointError:
        return  # refused, not wrong
    for parameter, gradient in zip(model.parameters(), plain):
        torch.testing.assert_close(parameter.grad, gradient)
    assert all(value > 0 for value in norms.sums().values())


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_in_the_midst_of_a_forward(reentrant):
    """The checkpoint's recomputation was taken for watched while the watch was off."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return torch.tanh(self.fc(x))

    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.block = nn.Linear(4, 4), Block()

        def forward(self, x):
            loss = checkpoint(self.block, self.first(x), use_reentrant=reentrant).square().sum()
            loss.backward()
            return loss.detach()

    model, x = Trainer(), torch.randn(5, 4)
    norms = clars.ExampleNorms(model)
    model(x)
    gradient = model.block.fc.weight.grad.clone()
    sums = norms.sums()
    norms.remove()
    model.zero_grad()
    model(x)
    torch.testing.assert_close(gradient, model.block.fc.weight.grad)
    assert float(sums["block.fc"]) >= float(gradient.norm())


def test_overlapping_forwards_of_two_threads():
    """The later one to end left a mark that switched the tracking off for good."""

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.entered, self.leave = nn.Linear(3, 3), threading.Event(), threading.Event()

        def forward(self, x):
            if not torch.is_grad_enabled():
                self.entered.set()
                self.leave.wait(10)
            return self.fc(x)

    model = Slow()
    norms = clars.ExampleNorms(model)

    def evaluate():
        with torch.no_grad():
            model(torch.randn(2, 3))

    thread = threading.Thread(target=evaluate)
    thread.start()
    model.entered.wait(10)
    model(torch.randn(2, 3)).sum().backward()
    model.leave.set()
    thread.join()
    norms.reset()
    model.zero_grad()
    model(torch.randn(2, 3)).sum().backward()
    assert float(norms.sums()["fc"]) > 0


def test_weights_that_change_places():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(3, 4)
    norms = clars.ExampleNorms(model)
    model(x).square().sum().backward()
    model[0].weight, model[2].weight = model[2].weight, model[0].weight
    for _ in range(2):
        model.zero_grad()
        norms.reset()
        model(x).square().sum().backward()
    found = norms.sums()
    norms.remove()
    model.zero_grad()
    expected = clars.oracle.mask_norms(model, lambda model, x: model(x).square().sum(), x)
    for name, total in expected.items():
        torch.testing.assert_close(found[name], total)


@pytest.mark.parametrize("conv", [nn.Conv1d(64, 64, 1, padding=1), nn.Conv3d(8, 8, 1, padding=(0, 0, 1))], ids=str)
def test_a_kernel_of_one_with_padding(conv):
    """The Gram form laid windows out for it, which there is only in two dimensions."""
    model = nn.Sequential(conv).double()
    x = torch.randn(3, conv.in_channels, *[2] * len(conv.kernel_size), dtype=torch.double)
    norms = clars.ExampleNorms(model, timed=True)  # tries every method
    squared_loss(model, x).backward()
    found = norms.sums()
    norms.remove()
    torch.testing.assert_close(found, clars.oracle.mask_norms(model, squared_loss, x), rtol=1e-9, atol=0)


def test_a_memory_format_changed_between_steps():
    """The parameters were cut into other pieces than their layers' indices."""
    model = nn.Sequential(nn.Conv2d(64, 256, 3, padding=1), nn.Flatten(), nn.Linear(256 * 4, 2))
    optimizer = clars.CLARS(model, lr=1.0)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model.to(memory_format=memory_format)
        optimizer.zero_grad()
        model(torch.randn(2, 64, 2, 2)).square().mean().backward()
        optimizer.step()


def test_inputs_with_gaps_between_their_rows():
    """The fast product of matrices was a thousand times slower on them; it must at least be right."""
    model = nn.Sequential(nn.Conv1d(128, 64, 1, stride=2))
    x = torch.randn(3, 128, 400)
    found = sums_of(model, x)
    expected = sums_of(model.double(), x.double())
    for name, total in expected.items():
        torch.testing.assert_close(found[name].double(), total, rtol=1e-5, atol=0)


def test_a_subset_raises_no_alarm(recwarn):
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = clars.CLARS(model, lr=1.0, estimator="subset", fraction=0.1)
    x = torch.cat([torch.zeros(19, 4), 100 * torch.ones(1, 4)])
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.layer_stats()
    assert not recwarn.list
