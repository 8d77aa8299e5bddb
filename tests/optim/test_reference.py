"""The optimizers against the step as a reader would write it, over several steps."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clars
from clars.optim.reference import (
    LayerState,
    MomentSettings,
    MomentState,
    Settings,
    clars_step,
    lamb_step,
    lars_step,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4))


def batch(step, dtype):
    made = torch.Generator().manual_seed(step)
    return torch.randn(5, 3, 6, 6, generator=made, dtype=dtype), torch.randint(4, (5,), generator=made)


def contributions(model, x, y):
    """Each example's part of the mean loss's gradient, [B, ...] by the parameter's name, one backward pass each."""
    parts = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        loss = F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / len(x)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for name, gradient in zip(parts, gradients):
            parts[name].append(gradient)
    return {name: torch.stack(each) for name, each in parts.items()}


OPTIONS = {
    "Nesterov": {},
    "heavy ball": {"nesterov": False},
    "rate outside, limited": {"max_ratio": 0.3, "decay_in_ratio": False, "rate_in_buffer": False},
}


def start(layer):
    weights = [parameter.detach().clone() for parameter in layer.parameters.values()]
    return LayerState(weights, [torch.zeros_like(weight) for weight in weights])


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("method", ["CLARS", "LARS"])
def test_steps_are_those_of_the_reference(method, options, dtype, rtol):
    model = network().to(dtype)
    plain = network().to(dtype)  # whose gradients the reference is given
    settings = Settings(lr=3.0, momentum=0.8, weight_decay=0.02, trust_coefficient=0.05, **options)
    optimizer = getattr(clars, method)(model, **settings._asdict())
    layers = clars.layers(plain)
    states = {layer.name: start(layer) for layer in layers}
    for step in range(4):
        x, y = batch(step, dtype)
        parts = contributions(plain, x, y)
        for layer in layers:
            own = [parts[layer.prefix + local] for local in layer.parameters]
            if method == "CLARS":
                states[layer.name] = clars_step(states[layer.name], own, settings)
            else:
                states[layer.name] = lars_step(states[layer.name], [each.sum(0) for each in own], settings)
            for parameter, weight in zip(layer.parameters.values(), states[layer.name].weights):
                parameter.data = weight
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for layer, other in zip(clars.layers(model), layers):
        for (name, parameter), buffer in zip(layer.parameters.items(), states[layer.name].buffers):
            scale = float(other.parameters[name].detach().abs().max())
            torch.testing.assert_close(parameter.data, other.parameters[name].data, rtol=rtol, atol=rtol * scale)
            found = optimizer.state[parameter]["momentum_buffer"]
            torch.testing.assert_close(found, buffer, rtol=rtol, atol=rtol * float(buffer.abs().max()))


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("layers", ["parameter", "module"])
def test_steps_of_lamb_are_those_of_the_reference(layers, dtype, rtol):
    model, plain = network().to(dtype), network().to(dtype)
    nn.init.zeros_(model[4].bias)
    nn.init.zeros_(plain[4].bias)
    settings = MomentSettings(lr=0.05, betas=(0.8, 0.95), weight_decay=0.02)
    optimizer = clars.LAMB(model, **settings._asdict(), layers=layers)
    own = clars.layers(plain, layers)
    states = {layer.name: MomentState(*start(layer), start(layer).buffers) for layer in own}
    for step in range(4):
        x, y = batch(step, dtype)
        plain.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        for layer in own:
            gradients = [parameter.grad for parameter in layer.parameters.values()]
            states[layer.name] = lamb_step(states[layer.name], gradients, settings)
            for parameter, weight in zip(layer.parameters.values(), states[layer.name].weights):
                parameter.data = weight
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for layer in optimizer.layers:
        state = states[layer.name]
        for parameter, *expected in zip(layer.parameters.values(), *state[:3]):
            kept = optimizer.state[parameter]
            for found, wanted in zip((parameter.data, kept["exp_avg"], kept["exp_avg_sq"]), expected):
                torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * float(wanted.abs().max()))


def test_a_layer_of_zeros_takes_the_step_of_the_floor():
    """It would stand still: its norm is zero."""
    model = nn.Linear(3, 2, bias=False).double()
    nn.init.zeros_(model.weight)
    settings = Settings(lr=1.0)
    optimizer = clars.CLARS(model, **settings._asdict())
    x, y = torch.randn(4, 3).double(), torch.randint(2, (4,))
    parts = contributions(model, x, y)
    expected = clars_step(start(clars.layers(model)[0]), [parts["weight"]], settings)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert expected.weights[0].any()
    torch.testing.assert_close(model.weight.data, expected.weights[0], rtol=1e-12, atol=0)
