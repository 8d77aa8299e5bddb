"""Losses of the tests, in a module that processes of their own can import: `conftest` is a name of several."""

import torch


def squared_loss(model, x):
    """A mean over examples of something no layer is blind to."""
    y = model(x).flatten(1)
    return (y * torch.linspace(0.5, 1.5, y[0].numel(), dtype=y.dtype) + y.square()).sum(1).mean()
