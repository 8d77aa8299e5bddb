"""Trainings written out, which other people's loops must equal: by clars's optimizer, and by the definition."""

import importlib.util
import runpy
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import clars

EXAMPLES = Path(__file__).parents[1] / "examples"
DEFAULTS = {"momentum": 0.9, "weight_decay": 5e-4, "trust_coefficient": 1e-3, "eps": 1e-8, "norm_floor": 1e-3}


def example(name):
    """Return the module that an example is."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def run_as_script(name):
    """Run what `python examples/NAME.py` runs, in this process, which has imported already what that has to."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def network(dtype=torch.float32):
    """Each kind of layer that one batch's steps can go wrong with, without dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 10)
    ).to(dtype)


def batches(count=6, size=4, dtype=torch.float32, shape=(1, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return list(zip(images, torch.randint(10, (count, size), generator=generator)))


def mean_loss(model, images, labels):
    return cross_entropy(model(images), labels)


def rates_of(rate, step, lr):
    return lr if rate is None else lr * rate(step)


def train(model, batches, *, lr=8.0, loss=mean_loss, parts=1, share=None, clip=None, rate=None, bf16=False, after=None):
    """Train by clars.CLARS; return it.

    Args:
        parts: micro-batches of a step.
        share: by which a micro-batch's loss is divided; `parts` by default.
        clip: a norm, or a function of the parameters.
        rate: a function of the step's number, by which `lr` is multiplied.
        after: called after each step.
    """
    optimizer = clars.CLARS(model, lr=lr)
    for step in range(len(batches) // parts):
        for group in optimizer.param_groups:
            group["lr"] = rates_of(rate, step, lr)
        optimizer.zero_grad()
        for batch in batches[step * parts : (step + 1) * parts]:
            with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
                value = loss(model, *batch)
            (value / (share or parts)).backward()
        if callable(clip):
            clip(model.parameters())
        elif clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if after:
            after()
    return optimizer


def train_by_definition(model, batches, *, lr=8.0, loss=mean_loss, parts=1, share=None, clip=None, rate=None):
    """Train without clars's optimizer and tracker: norms example by example, the step as the documentation has it."""
    layers = clars.layers(model)
    momentum = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    for step in range(len(batches) // parts):
        model.zero_grad()
        sums = dict.fromkeys([layer.name for layer in layers], 0.0)
        for batch in batches[step * parts : (step + 1) * parts]:
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            for name, value in clars.oracle.mask_norms(model, loss, *batch).items():
                sums[name] += value / (share or parts)
            model.load_state_dict(buffers, strict=False)
            (loss(model, *batch) / (share or parts)).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        for layer in layers:
            _step(list(layer.parameters.values()), sums[layer.name], momentum, rates_of(rate, step, lr))


@torch.no_grad()
def _step(parameters, total, momentum, lr):
    beta, decay, trust, eps, floor = DEFAULTS.values()
    flat = torch.cat([parameter.flatten() for parameter in parameters])
    norm = max(flat.norm(), floor * len(flat) ** 0.5)
    ratio = trust * norm / (total + decay * norm + eps)
    for parameter in parameters:
        change = lr * ratio * (parameter.grad + decay * parameter)
        momentum[parameter].mul_(beta).add_(change)
        parameter -= change + beta * momentum[parameter]


def assert_same(model, expected, rtol=0.0):
    """Compare weights and buffers tensor by tensor: to the bit, or by the norm of the difference.

    What is zero but for rounding, as the keys' biases of an attention, is held to the bound of a norm of 1e-6.
    """
    got, wanted = model.state_dict(), expected.state_dict()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        if rtol:
            difference = (got[name].double() - value.double()).norm()
            assert difference <= rtol * (value.double().norm() + 1e-6), (name, float(difference))
        else:
            assert torch.equal(got[name], value), name


def assert_moved(model, start):
    """Fail for a training that did nothing, which would equal any other that did nothing."""
    for (name, parameter), (_, before) in zip(model.named_parameters(), start.named_parameters()):
        assert not torch.equal(parameter, before), name
