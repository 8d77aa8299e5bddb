"""What is saved of an optimizer, and given to another one."""

import copy

import pytest
import timm.optim
import torch
from torch import nn

import clars
from clars.lab.training import momentum

OPTIMIZERS = {
    "LAMB": lambda model: clars.LAMB(model, 0.02),
    "CLARS": lambda model: clars.CLARS(model, 2.0),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), 0.01),
    "Muon": lambda model: timm.optim.Muon(model.parameters(), 0.01),
    # What is kept in numbers, in numbers of groups, and in tensors of other shapes.
    **{
        name: lambda model, name=name: timm.optim.create_optimizer_v2(model, name, 0.01)
        for name in ("lamb", "adan", "laprop", "novograd", "adafactor", "madgrad", "nadamlegacy")
    },
}


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    return optimizer


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_training_goes_on(make):
    model, whole = network(), network()
    train(whole, make(whole), range(6))
    first = make(model)
    assert momentum.gather(first, model, first) == {}
    train(model, first, range(3))
    state = copy.deepcopy(momentum.gather(first, model, first))
    wanted = momentum.expected(model, first)
    assert all(tensor.shape == wanted[name].shape for name, tensor in state.items())
    assert state.keys() == wanted.keys()
    second = make(model)
    momentum.put(second, model, second, state, 3)
    train(model, second, range(3, 6))
    assert all(map(torch.equal, model.parameters(), whole.parameters()))


def test_steps_that_were_left_out_are_not_counted():
    """The run's own count has them; it stands in where a state of an older version tells no other."""
    model, make = network(), OPTIMIZERS["LAMB"]
    first = train(model, make(model), range(3))
    state = momentum.gather(first, model, first)
    second = make(model)
    momentum.put(second, model, second, state, 5)
    assert all(int(group["step"]) == 3 for group in second.param_groups)
    del state["step"]
    momentum.put(second, model, second, state, 5)
    assert all(int(group["step"]) == 5 for group in second.param_groups)
