"""Options that make the one step that of other implementations: a largest ratio, no decay in it, the rate outside."""

import copy
from itertools import product
from math import inf

import pytest
import torch
from conftest import squared_loss
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import clars

LR, MOMENTUM, DECAY, TRUST = 3.0, 0.8, 0.02, 0.01
LATER = ("max_ratio", "decay_in_ratio", "rate_in_buffer")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).double()


def images():
    return torch.randn(6, 2, 5, 5).double()


def written_out(model, x, buffers, method, *, max_ratio, decay_in_ratio, rate_in_buffer, nesterov):
    """Take a step of `model` by the definition, and return the ratios."""
    sums, ratios = clars.oracle.mask_norms(copy.deepcopy(model), squared_loss, x), {}
    model.zero_grad()
    squared_loss(model, x).backward()
    for layer in clars.layers(model):
        w = torch.cat([p.detach().flatten() for p in layer.parameters.values()]).norm()
        g = torch.cat([p.grad.flatten() for p in layer.parameters.values()]).norm()
        below = (sums[layer.name] if method is clars.CLARS else g) + (DECAY * w if decay_in_ratio else 0.0) + 1e-8
        ratio = ratios[layer.name] = min(float(TRUST * w / below), max_ratio)
        for name, p in layer.parameters.items():
            gradient = p.grad + DECAY * p.detach()
            before = buffers.get(layer.prefix + name, torch.zeros_like(p))
            if rate_in_buffer:
                b = MOMENTUM * before + LR * ratio * gradient
                p.data -= LR * ratio * gradient + MOMENTUM * b if nesterov else b
            else:
                b = MOMENTUM * before + gradient
                p.data -= LR * ratio * (gradient + MOMENTUM * b if nesterov else b)
            buffers[layer.prefix + name] = b
    return ratios


@pytest.mark.parametrize("values", list(product((inf, 0.01), *[(True, False)] * 3)), ids=str)
@pytest.mark.parametrize("method", [clars.CLARS, clars.LARS])
def test_the_formula(method, values):
    options = dict(zip((*LATER, "nesterov"), values))
    model, plain, buffers = network(), network(), {}
    optimizer = method(model, LR, MOMENTUM, DECAY, TRUST, **options)
    limited = set()
    for x in [images() for _ in range(3)]:
        ratios = written_out(plain, x, buffers, method, **options)
        optimizer.zero_grad()
        squared_loss(model, x).backward()
        optimizer.step()
        assert {name: row.ratio for name, row in optimizer.layer_stats().items()} == pytest.approx(ratios, rel=1e-9)
        limited |= {name for name, ratio in ratios.items() if ratio == options["max_ratio"]}
    torch.testing.assert_close(list(model.parameters()), list(plain.parameters()), rtol=1e-9, atol=1e-12)
    found = {name: optimizer.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
    torch.testing.assert_close(found, buffers, rtol=1e-9, atol=1e-12)
    assert options["max_ratio"] == inf or 0 < len(limited) < len(ratios), "the limit must matter, and not to all"


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("method", [clars.CLARS, clars.LARS])
def test_the_rate_outside_and_no_adaptation_is_sgd_at_a_changing_rate(method, momentum, nesterov):
    model = network()
    twin = copy.deepcopy(model)
    ours = method(
        model, 0.1, momentum, 0.01, nesterov=nesterov, overrides={"*": {"adapt": False}}, rate_in_buffer=False
    )
    sgd = torch.optim.SGD(twin.parameters(), 0.1, momentum, weight_decay=0.01, nesterov=nesterov and momentum > 0)
    for net, optimizer in ((model, ours), (twin, sgd)):
        torch.manual_seed(1)
        schedule = LambdaLR(optimizer, lambda step: 0.7**step)
        for _ in range(6):
            optimizer.zero_grad()
            squared_loss(net, images()).backward()
            optimizer.step()
            schedule.step()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-13, atol=1e-15)
    for p, q in zip(model.parameters(), twin.parameters()):
        kept, wanted = ours.state[p].get("momentum_buffer"), sgd.state[q].get("momentum_buffer")
        torch.testing.assert_close(kept, wanted, rtol=1e-13, atol=1e-15)


def test_overrides():
    """A layer that is not adapted has the ratio 1, whatever the largest one is."""
    overrides = {"@1d": {"adapt": False}, "4": {"max_ratio": 1e-6, "decay_in_ratio": False, "rate_in_buffer": False}}
    model = network()
    optimizer = clars.CLARS(model, LR, overrides=overrides, max_ratio=1e-5)
    squared_loss(model, images()).backward()
    optimizer.step()
    ratios = {name: row.ratio for name, row in optimizer.layer_stats().items()}
    assert ratios == pytest.approx({"0": 1e-5, "1": 1.0, "4": 1e-6})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_ratio": -1.0}, r"optimizer: max_ratio=-1.0 must be a number in \[0, inf\]"),
        ({"max_ratio": float("nan")}, "max_ratio=nan must be a number"),
        ({"decay_in_ratio": 0}, "decay_in_ratio=0 must be True or False"),
        ({"overrides": {"0": {"rate_in_buffer": None}}}, r"overrides\['0'\]: rate_in_buffer=None must be"),
        ({"overrides": {"0": {"rate_in_bufer": False}}}, "Did you mean 'rate_in_buffer'"),
    ],
)
def test_impossible_values(options, message):
    with pytest.raises(ValueError, match=message):
        clars.LARS(network(), LR, **options)


def test_a_state_of_the_version_before_these_options():
    """It meant what their defaults say, also where it is loaded into an optimizer made with others."""
    model = network()
    saved = clars.LARS(model, LR)
    squared_loss(model, images()).backward()
    saved.step()
    state = copy.deepcopy(saved.state_dict())
    for group in state["param_groups"]:
        for name in LATER:
            del group[name]
    later = clars.LARS(model, 1.0, max_ratio=0.1, decay_in_ratio=False, rate_in_buffer=False)
    later.load_state_dict(state)
    assert later.state_dict()["param_groups"] == saved.state_dict()["param_groups"]
    assert all(name not in group for group in state["param_groups"] for name in LATER), "the state is the user's"
    later.step()
