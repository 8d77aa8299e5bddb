"""No step asks the device for a number: on a GPU that would stall the queue."""

from functools import partial

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import clars


class CountReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.reads += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_the_count_counts():
    with CountReads() as count:
        torch.ones(()).item()
    assert count.reads == 1


@pytest.mark.parametrize("method", [clars.CLARS, partial(clars.CLARS, estimator="subset"), clars.LARS, clars.LAMB])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_forward_backward_and_step_read_nothing(method, name):
    model = timm.create_model(name, num_classes=3)
    optimizer = method(model, lr=1.0)
    x, y = torch.randn(2, 3, 32, 32), torch.arange(2)
    with CountReads() as count:
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert count.reads == 0
