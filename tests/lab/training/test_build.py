"""The optimizers of others: their arguments, and where they are refused."""

import re

import pytest
import torch
from safetensors.torch import load_file

from clars.errors import UserError
from clars.lab import models
from clars.lab.recipes.load import load
from clars.lab.recipes.schema import Model, Optimizer
from clars.lab.training import script
from clars.lab.training.build import build_optimizer, build_schedule, require_strategy


def built(recipe, **settings):
    resolved = load(str(recipe(optimizer=settings)))
    return build_optimizer(resolved, models.create(Model(name="resnet8"), 10, 1, 8)), resolved


def test_adamw_has_the_recipe_s_values(recipe):
    optimizer, resolved = built(recipe, name="adamw", momentum=0.8, weight_decay=0.1, eps=1e-6)
    group = optimizer.param_groups[0]
    assert type(optimizer) is torch.optim.AdamW and group["lr"] == resolved.peak_rate
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.8, 0.999), 0.1, 1e-6)


def test_muon_has_the_recipe_s_values_and_orthogonalises_convolutions(recipe):
    optimizer, _ = built(recipe, name="muon", momentum=0.8, weight_decay=0.1)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, True, 0.1)
    weight = [parameter for parameter in group["params"] if parameter.dim() == 4][1]  # after the stem's one channel
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) + 2
    before = weight.detach().clone()
    group["weight_decay"] = 0.0
    optimizer.step()
    one, other = (torch.linalg.cond(matrix.detach().flatten(1)) for matrix in (weight.grad, weight - before))
    assert one > 3 * other


@pytest.mark.parametrize("strategy", ["fsdp2", "zero1", "zero3"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_refused_where_parameters_are_cut(name, strategy):
    with pytest.raises(UserError, match=f"'{name}' cannot be had under {strategy}"):
        require_strategy(Optimizer(name=name), strategy)
    require_strategy(Optimizer(name=name, clip_norm=1.0), "ddp")


def test_deepspeed_clips_by_a_setting_of_its_own():
    with pytest.raises(UserError, match="clip_norm cannot be had under zero2"):
        require_strategy(Optimizer(name="clars", clip_norm=1.0), "zero2")
    require_strategy(Optimizer(name="clars", clip_norm=1.0), "fsdp2")


def test_a_gradient_is_cut_down_to_its_norm(recipe):
    """Without momentum and decay, a step moves the weights by the rate times the gradient's norm, which is larger."""
    plain = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    moved = {}
    for most in (1e-3, 1e3):
        path = recipe(optimizer=plain | {"clip_norm": most}, schedule={"base_rate": 0.1, "base_batch": 64}, epochs=1)
        assert script.main([str(path), "--out", f"out{most}"]) == 0
        resolved = load(str(path))
        torch.manual_seed(0)
        weights = load_file(f"out{most}/small/seed0/model.safetensors")
        start = models.create(resolved.recipe.model, 10, 1, 8)
        moved[most] = sum((weights[name] - value).square().sum() for name, value in start.named_parameters()) ** 0.5
    steps = moved[1e-3] / (1e-3 * resolved.peak_rate)
    assert steps <= 1437 // resolved.recipe.batch_size * 1.001 < moved[1e3] / (1e-3 * resolved.peak_rate)


def test_optimizers_of_timm_by_name(recipe):
    optimizer, resolved = built(recipe, name="timm.lamb", weight_decay=0.1, eps=1e-5, arguments={"betas": [0.8, 0.9]})
    without, decayed = optimizer.param_groups
    assert type(optimizer).__name__ == "Lamb" and decayed["lr"] == resolved.peak_rate
    assert (decayed["betas"], decayed["eps"], decayed["weight_decay"]) == ([0.8, 0.9], 1e-5, 0.1)
    assert without["weight_decay"] == 0.0 and all(parameter.dim() == 1 for parameter in without["params"])


def test_layer_decay_comes_into_force(recipe):
    """timm leaves a factor for schedules of its own; ours has to take it up."""
    optimizer, resolved = built(recipe, name="timm.adamw", arguments={"layer_decay": 0.5})
    schedule = build_schedule(resolved, optimizer, steps_per_epoch=10, done=5)  # where warmup is over
    factors = [group["lr_scale"] for group in optimizer.param_groups]
    assert min(factors) < 0.2 and max(factors) == 1.0
    assert schedule.get_last_lr() == pytest.approx([max(schedule.get_last_lr()) * factor for factor in factors])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "timm.lion2"}, "has no optimizer 'lion2'. Did you mean 'lion'"),
        ({"name": "timm.lion", "arguments": {"beta": 1}}, "cannot be made with {'beta': 1}"),
        ({"name": "timm.kron"}, "Kron keeps 'Q', a list, which a run cannot save"),
        ({"name": "timm.adahessian"}, "does not step by gradients alone"),
    ],
)
def test_optimizers_of_timm_that_cannot_be_had(recipe, settings, told):
    with pytest.raises(UserError, match=re.escape(told)):
        built(recipe, **settings)


def test_a_momentum_that_a_method_lacks(recipe):
    with pytest.warns(UserWarning, match="optimizer.momentum has no effect with optimizer.name = 'timm.lion'"):
        built(recipe, name="timm.lion", momentum=0.8)
