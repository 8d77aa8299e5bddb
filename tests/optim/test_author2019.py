"""The step of the first author's code of 2019, against the formula written out."""

import inspect
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import clars
from clars.presets import AUTHOR2019


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6).eval(), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)
    ).double()


def batch(step):
    made = torch.Generator().manual_seed(step)
    return torch.randn(20, 3, 6, 6, generator=made, dtype=torch.float64), torch.randint(4, (20,), generator=made)


def gradients(model, x, y, share):
    return torch.autograd.grad(cross_entropy(model(x), y) * share, list(model.parameters()))


def step_by_hand(model, buffers, x, y, lr):
    """Each tensor by itself: groups of 8, 8 and 4 out of 20 examples, each a mean's part by its size."""
    parts = [gradients(model, a, b, len(a) / len(x)) for a, b in zip(x.split(8), y.split(8))]
    for k, parameter in enumerate(model.parameters()):
        total = sum(part[k].norm() for part in parts)
        ratio = (
            min(0.1, 0.01 * float(parameter.detach().norm()) / (float(total) + 1e-6)) if parameter.dim() > 1 else 1.0
        )
        with torch.no_grad():
            buffers[k] = 0.9 * buffers[k] + sum(part[k] for part in parts) + 2e-4 * parameter
            parameter -= lr * ratio * buffers[k]


def test_five_steps_by_hand():
    """With rates that fall, and a ratio at its limit in some steps and below it in others."""
    model, plain = network(), network()
    with torch.no_grad():
        for one in (model, plain):
            one[4].weight *= 40  # so that its ratio is at the limit
    optimizer = clars.CLARS.author2019(model, lr=0.3)
    buffers, ratios = [0.0] * 6, []
    for step in range(5):
        rate = 0.3 * (1 - step / 5) ** 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = batch(step)
        step_by_hand(plain, buffers, x, y, rate)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        ratios.append({name: stats.ratio for name, stats in optimizer.layer_stats().items()})
    for got, wanted in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=0)
    assert ratios[0]["4.weight"] == 0.1 and 0 < ratios[0]["0.weight"] < 0.1
    assert {ratios[0][name] for name in ("0.bias", "1.weight", "1.bias", "4.bias")} == {1.0}


def test_options_take_the_place_of_its_own():
    optimizer = clars.CLARS.author2019(network(), 1.0, group=2, max_ratio=0.5)
    assert optimizer.norms.estimator.group == 2
    assert {group["max_ratio"] for group in optimizer.param_groups} == {0.5}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {2e-4}


def test_other_estimators_bring_no_group():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = clars.CLARS.author2019(network(), 1.0, estimator="exact")
        subset = clars.CLARS.author2019(network(), 1.0, estimator="subset", fraction=0.5)
        model = network()
        norms = clars.ExampleNorms(model, "group", group=2)
        given = clars.CLARS.author2019(model, 1.0, norms=norms, layers="module", overrides={"@1d": {"adapt": True}})
    assert (exact.norms.estimator.name, subset.norms.estimator.blocks) == ("exact", 2)
    assert given.norms is norms


def test_overrides_come_on_top():
    optimizer = clars.CLARS.author2019(network(), 1.0, overrides={"4.weight": {"lr": 0.5}})
    options = {group["layer"]: (group["adapt"], group["lr"]) for group in optimizer.param_groups}
    assert options["4.weight"] == (True, 0.5) and options["4.bias"] == options["1.weight"] == (False, 1.0)


def test_modules_without_vectors_of_their_own():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = clars.CLARS.author2019(model, 1.0, layers="module")
    assert [group["adapt"] for group in optimizer.param_groups] == [True, True]


def test_a_model_without_vectors_has_none_to_leave_out():
    optimizer = clars.CLARS.author2019(nn.Linear(3, 2, bias=False), 1.0)
    assert [group["adapt"] for group in optimizer.param_groups] == [True]


def test_its_settings_are_arguments():
    assert AUTHOR2019.keys() <= inspect.signature(clars.CLARS).parameters.keys()
    with pytest.raises(TypeError):
        clars.CLARS.author2019(network(), 1.0, momentun=0.5)
