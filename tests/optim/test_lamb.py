"""LAMB: its formula, timm's steps, its state, and how much memory a step takes on the way."""

import copy

import pytest
import timm.optim
import torch
from conftest import squared_loss
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import clars
from clars.optim import moments

STEPS = 10


class Network(nn.Module):
    """A bias of zeros, a normalisation, and a layer that not every step uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.seldom = nn.Conv2d(2, 4, 3), nn.GroupNorm(1, 4), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(36, 3)
        nn.init.zeros_(self.last.bias)
        self.all = True

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.last((x + self.seldom(x) if self.all else x).flatten(1))


def train(model, optimizer, steps=range(STEPS), schedule=None):
    """The layer `seldom` is left out of the first step and of every third one."""
    for number in steps:
        model.all = number % 3 != 0
        x = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(number)).to(model.last.weight.dtype)
        optimizer.zero_grad()
        squared_loss(model, x).backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return optimizer


def assert_close(model, expected, bound):
    for (name, value), wanted in zip(model.named_parameters(), expected.parameters()):
        assert (value - wanted).norm() <= bound * wanted.norm(), name


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 0.3])
@pytest.mark.parametrize(
    "schedule", [lambda o: LambdaLR(o, lambda t: 0.8**t), lambda o: OneCycleLR(o, 0.05, STEPS)], ids=["rate", "betas"]
)
def test_it_is_timms(schedule, weight_decay, dtype, bound):
    """OneCycleLR changes the first beta as well."""
    model, twin = Network().to(dtype), Network().to(dtype)
    ours = clars.LAMB(model, 0.02, (0.85, 0.99), weight_decay)
    theirs = timm.optim.Lamb(
        twin.parameters(), 0.02, betas=(0.85, 0.99), weight_decay=weight_decay, always_adapt=True, max_grad_norm=None
    )
    for net, optimizer in ((model, ours), (twin, theirs)):
        train(net, optimizer, schedule=schedule(optimizer))
    assert_close(model, twin, bound)
    assert {group["step"] for group in ours.param_groups} == {int(theirs.param_groups[0]["step"])}
    for p, q in zip(model.parameters(), twin.parameters()):
        assert ours.state[p].keys() == theirs.state[q].keys()
        for key, value in theirs.state[q].items():
            assert (ours.state[p][key] - value).norm() <= bound * value.norm()


def written_out(layers, state, step, options_of):
    """Take a step by the formula; return norms and ratio by layer."""
    rows = {}
    for layer in layers:
        lr, (first, second), decay, adapt = options_of(layer.name).values()
        directions = {}
        for name, p in layer.parameters.items():
            if p.grad is not None:
                m, v = state.get(layer.prefix + name, (torch.zeros_like(p), torch.zeros_like(p)))
                m, v = first * m + (1 - first) * p.grad, second * v + (1 - second) * p.grad**2
                state[layer.prefix + name] = m, v
                unbiased = m / (1 - first**step), v / (1 - second**step)
                directions[name] = unbiased[0] / (unbiased[1].sqrt() + 1e-6) + decay * p.detach()
        if not directions:
            continue
        w = torch.cat([p.detach().flatten() for p in layer.parameters.values()]).norm()
        u = torch.cat([each.flatten() for each in directions.values()]).norm()
        g = torch.cat([layer.parameters[name].grad.flatten() for name in directions]).norm()
        ratio = float(w / u) if adapt and w and u else 1.0
        rows[layer.name] = (float(w), float(g), ratio)
        for name, direction in directions.items():
            layer.parameters[name].data -= lr * ratio * direction
    return rows


@pytest.mark.parametrize("unit", ["parameter", "module"])
def test_the_formula(unit):
    model, plain, state = Network().double(), Network().double(), {}
    usual = {"lr": 0.02, "betas": (0.9, 0.999), "weight_decay": 0.01, "adapt": True}
    others = {"lr": 0.003, "betas": (0.5, 0.9), "weight_decay": 0.0, "adapt": False}
    optimizer = clars.LAMB(model, 0.02, layers=unit, overrides={"norm*": others})
    layers = clars.layers(plain, unit)
    for number in range(STEPS):
        train(model, optimizer, [number])
        plain.all = model.all
        plain.zero_grad()
        x = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(number)).double()
        squared_loss(plain, x).backward()
        rows = written_out(layers, state, number + 1, lambda name: others if name.startswith("norm") else usual)
        stats = optimizer.layer_stats()
        assert stats.keys() == rows.keys()
        for name, row in rows.items():
            assert stats[name][:3] == pytest.approx(row, rel=1e-9), (number, name)
        assert all(row[3:] == (None, None, None) for row in stats.values())
    assert_close(model, plain, 1e-9)
    for name, p in model.named_parameters():
        for found, wanted in zip(optimizer.state[p].values(), state[name], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)


def test_layers_without_a_norm_move_by_their_direction():
    """Weights of zeros, and a direction of zeros."""
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = clars.LAMB(model, 0.1, weight_decay=0.0)
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(model.weight.data, torch.full((2, 3), -0.1))
    assert model.bias.tolist() == [1.0, 1.0]
    assert {name: row.ratio for name, row in optimizer.layer_stats().items()} == {"weight": 1.0, "bias": 1.0}


def test_gradients_are_left_as_they_are():
    model = Network()
    squared_loss(model, torch.randn(4, 2, 5, 5)).backward()
    before = [p.grad.clone() for p in model.parameters()]
    clars.LAMB(model, 0.1).step()
    assert all(torch.equal(p.grad, value) for p, value in zip(model.parameters(), before))


@pytest.mark.parametrize("merge", [False, True])
def test_a_training_goes_on_from_its_state(merge):
    def optimizer_of(model):
        optimizer = clars.LAMB(model, 0.02, overrides={"norm*": {"weight_decay": 0.0}})
        if merge:
            optimizer.merge_groups()
        return optimizer

    straight, model = Network(), Network()
    train(straight, clars.LAMB(straight, 0.02, overrides={"norm*": {"weight_decay": 0.0}}))
    state = copy.deepcopy(train(model, optimizer_of(model), range(4)).state_dict())
    assert [group["step"] for group in state["param_groups"]] == [4] * (2 if merge else 8)
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(state)
    train(model, optimizer, range(4, STEPS))
    assert all(map(torch.equal, model.parameters(), straight.parameters()))


def test_groups_are_merged_after_steps_were_taken():
    straight, model = Network(), Network()
    train(straight, clars.LAMB(straight, 0.02))
    optimizer = train(model, clars.LAMB(model, 0.02), range(4))
    optimizer.merge_groups()
    train(model, optimizer, range(4, STEPS))
    assert all(map(torch.equal, model.parameters(), straight.parameters()))


def test_a_state_that_lacks_the_number_of_steps():
    state = clars.LAMB(Network(), 0.1).state_dict()
    del state["param_groups"][0]["step"]
    with pytest.raises(ValueError, match=r"state of layer 'conv.weight': lacks the option 'step'"):
        clars.LAMB(Network(), 0.1).load_state_dict(state)


def test_a_look_at_the_state_is_no_step():
    """Torch has an optimizer without state take a step with gradients and rates of zero."""
    model = Network()
    optimizer = clars.LAMB(model, 0.02)
    get_optimizer_state_dict(model, optimizer)
    assert {group["step"] for group in optimizer.param_groups} == {0}
    twin = Network()
    train(model, optimizer)
    train(twin, clars.LAMB(twin, 0.02))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


class Made(TorchDispatchMode):
    """The most numbers of one tensor that an operator has made, not counting views."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        there = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        for each in tree_leaves(result):
            if torch.is_tensor(each) and each.untyped_storage().data_ptr() not in there:
                self.most = max(self.most, each.numel())
        return result


def test_a_step_works_on_parts_of_limited_size(monkeypatch):
    """A step by parts is that of whole tensors, and makes none larger than a part."""
    ends = []
    for limit in (2**17, 50):
        monkeypatch.setattr(moments, "BLOCK", limit)
        model = Network()
        optimizer = train(model, clars.LAMB(model, 0.02), range(4))
        with Made() as made:
            optimizer.step()
        ends.append(model)
    assert made.most == 50
    assert_close(*ends, 3e-7)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lr": -1.0}, r"lr=-1.0 must be a number in \[0, inf\)"),
        ({"betas": (0.9, 1.0)}, r"optimizer: betas=\(0.9, 1.0\) must be two numbers in \[0, 1\)"),
        ({"betas": 0.9}, "betas=0.9 must be two numbers"),
        ({"betas": (0.9,)}, "betas=.* must be two numbers"),
        ({"betas": (True, 0.9)}, "betas=.* must be two numbers"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"eps": -1.0}, "eps=-1.0 must be above 0"),
        ({"layers": "tensor"}, "layers='tensor'"),
        ({"overrides": {"conv*": {"betas": (-0.1, 0.9)}}}, r"overrides\['conv\*'\]: betas"),
        ({"overrides": {"conv*": {"momentum": 0.9}}}, "option 'momentum' is not known.*Known: lr, betas"),
        ({"overrides": {"conv*": {"step": 3}}}, "option 'step' is not known"),
        ({"overrides": {"bn*": {}}}, "'bn\\*' matches no layer"),
    ],
)
def test_impossible_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        clars.LAMB(Network(), **({"lr": 0.1} | arguments))


def test_betas_in_a_list():
    model, twin = Network(), Network()
    optimizer = clars.LAMB(model, 0.02, betas=[0.9, 0.999])
    optimizer.merge_groups()
    train(model, optimizer)
    train(twin, clars.LAMB(twin, 0.02))
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
