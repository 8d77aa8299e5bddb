"""Each method in float32, on shapes of real networks, against the definition in float64."""

import pytest
import torch

from clars.native import kernels as cpu
from clars.norms.rules.convolution import Conv
from clars.norms.rules.linear import Linear

# channels, outputs, size, kernel, stride, padding, groups
CONVS = [
    (256, 64, 14, 1, 1, 0, 1),
    (128, 256, 14, 1, 2, 0, 1),
    (64, 64, 14, 3, 1, 1, 1),
    (128, 256, 7, 3, 1, 1, 1),
    (64, 128, 14, 3, 2, 1, 1),
    (3, 32, 32, 7, 2, 3, 1),
    (96, 96, 7, 3, 1, 1, 96),
    (96, 96, 2, 3, 1, 1, 96),
    (64, 64, 8, 3, 1, 1, 4),
    (3, 48, 32, 8, 8, 0, 1),
]


@pytest.fixture(params=["kernels", "torch's operators"], autouse=True)
def means(request, monkeypatch):
    """With the compiled kernels and without, and on two threads, where an example is a thread's."""
    if request.param != "kernels":
        monkeypatch.setattr(cpu, "load", lambda: cpu.State(False, "switched off"))
    elif not cpu.load().loaded:
        pytest.skip(cpu.load().text)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def reference(rule, gy, x, weight):
    """Each example's weight gradient by torch, in float64."""
    gy, x, weight = gy.double(), x.double(), weight.double()
    return torch.stack(
        [rule._gradient(gy[i : i + 1], x[i : i + 1], weight, rule.groups, wrt_input=False) for i in range(len(x))]
    )


def assert_close(contribution, expected, gradient):
    got = contribution.gradient if contribution.gradient is not None else gradient
    total = expected.sum(0)
    assert (got.double() - total).norm() <= 2e-6 * total.norm()
    torch.testing.assert_close(contribution.squares.double(), expected.flatten(1).square().sum(1), rtol=5e-6, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_conv(shape, memory_format):
    channels, outputs, size, kernel, stride, padding, groups = shape
    rule = Conv((stride,) * 2, (padding,) * 2, (1, 1), groups)
    x, weight = torch.randn(5, channels, size, size), torch.randn(outputs, channels // groups, kernel, kernel)
    gy = torch.randn_like(rule.forward(x, weight, None)[0])
    gy, x, weight = (value.to(memory_format=memory_format) for value in (gy, x, weight))
    problem = rule.problem(gy, x, weight)
    expected = reference(rule, gy, x, weight)
    gradient = rule._gradient(gy, x, weight, groups, wrt_input=False)
    methods = rule.methods(problem)
    assert len(methods) > 1
    for method in methods.values():
        assert_close(method(gy, x, weight, problem, None), expected, gradient)


@pytest.mark.parametrize(
    ("positions", "inputs", "outputs"), [(197, 192, 576), (49, 320, 100), (1, 512, 100), (3, 4, 5)]
)
def test_linear(positions, inputs, outputs):
    rule = Linear()
    gy, x = torch.randn(5, outputs, positions), torch.randn(5, inputs, positions)
    expected = gy.double() @ x.double().mT
    problem = rule.problem(gy, x, None)
    for method in rule.methods(problem).values():
        assert_close(method(gy, x, None, problem, None), expected, rule._gradient(gy, x))


def test_without_onednn(monkeypatch):
    """The products fall back to torch's own matrices where the library behind the fast ones is switched off."""
    gy, x = torch.randn(3, 256, 196), torch.randn(3, 128, 196)
    rule = Linear()
    problem = rule.problem(gy, x, None)
    fast = rule.methods(problem)["matrix"](gy, x, None, problem, None)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = rule.methods(problem)["matrix"](gy, x, None, problem, None)
    torch.testing.assert_close(fast.squares, plain.squares, rtol=1e-5, atol=0)
    torch.testing.assert_close(fast.gradient, plain.gradient, rtol=1e-5, atol=1e-3)
