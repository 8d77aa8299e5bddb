"""Ways in which a gradient comes about, and in which it goes: the sums must come and go with it.

Each way is a function of the model, its parameters and what computes a loss. `KEPT` says which ways of going leave the
gradient where it is.
"""

import torch
from torch import nn


def set_to_none(model):
    for parameter in model.parameters():
        parameter.grad = None


def each(change):
    def drop(model):
        for parameter in model.parameters():
            if parameter.grad is not None:
                change(parameter)

    return drop


def together(model):
    if gradients := [parameter.grad for parameter in model.parameters() if parameter.grad is not None]:
        torch._foreach_zero_(gradients)


def replaced(value):
    def change(parameter):
        parameter.grad = value(parameter.grad)

    return each(change)


DROPS = {
    "nothing": lambda model: None,
    "grad = None": set_to_none,
    "model.zero_grad()": lambda model: model.zero_grad(),
    "model.zero_grad(set_to_none=False)": lambda model: model.zero_grad(set_to_none=False),
    "grad.zero_()": each(lambda parameter: parameter.grad.zero_()),
    "grad.data.zero_()": each(lambda parameter: parameter.grad.data.zero_()),
    "grad.mul_(0)": each(lambda parameter: parameter.grad.mul_(0)),
    "grad.fill_(0)": each(lambda parameter: parameter.grad.fill_(0)),
    "grad.copy_(zeros)": each(lambda parameter: parameter.grad.copy_(torch.zeros_like(parameter.grad))),
    "grad = zeros": replaced(torch.zeros_like),
    "_foreach_zero_": together,
    "grad = grad.clone()": replaced(torch.clone),
    "clipped": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.01),
}
KEPT = {"nothing", "grad = grad.clone()", "clipped"}
