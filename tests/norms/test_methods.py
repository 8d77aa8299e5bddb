"""Each method in float32, on shapes of real networks, against the definition in float64."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from clars import native
from clars.norms.methods import METHODS
from clars.norms.methods.chooser import applying
from clars.norms.methods.operands import ConvolutionOperands, Geometry, LinearOperands

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


@pytest.fixture(params=["kernels", "torch's operators", "an accelerator's operators"], autouse=True)
def means(request):
    """With the compiled kernels and without, and on two threads, where an example is a thread's."""
    if request.param == "an accelerator's operators":
        request.getfixturevalue("accelerated")
    if request.param == "kernels" and not native.load().loaded:
        pytest.skip(native.load().text)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with nullcontext() if request.param == "kernels" else native.suspended():
        yield
    torch.set_num_threads(before)


def reference(operands):
    """Each example's weight gradient by torch, in float64."""
    doubles = (operands.gy.double(), operands.x.double(), operands.weight.double())
    precise = ConvolutionOperands(*doubles, operands.geometry)
    return torch.stack([precise.of(slice(i, i + 1)).gradient() for i in range(len(operands.x))])


def sizes_of(operands, group):
    return replace(operands.sizes(), group=group)


def untested(methods, sizes):
    """Return the methods, of an accelerator's those alone that are not torch's operators' too."""
    own = {"fused", "squared", "gram", "depthwise"}
    return [method for method in methods if not sizes.accelerated or method.name in own]


def assert_close(contribution, expected, gradient, group):
    got = contribution.gradient if contribution.gradient is not None else gradient
    total = expected.sum(0)
    assert (got.double() - total).norm() <= 2e-6 * total.norm()
    squares = torch.stack([some.sum(0).square().sum() for some in expected.split(group)])
    torch.testing.assert_close(contribution.squares.double(), squares, rtol=5e-6, atol=0)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_conv(shape, memory_format, group):
    channels, outputs, size, kernel, stride, padding, groups = shape
    geometry = Geometry((stride,) * 2, (padding,) * 2, (1, 1), groups)
    x, weight = torch.randn(5, channels, size, size), torch.randn(outputs, channels // groups, kernel, kernel)
    gy = torch.randn_like(F.conv2d(x, weight, None, *geometry))
    gy, x, weight = (value.to(memory_format=memory_format) for value in (gy, x, weight))
    operands = ConvolutionOperands(gy, x, weight, geometry)
    sizes = sizes_of(operands, group)
    methods = applying(sizes)
    assert len(methods) > 1
    for method in untested(methods, sizes):
        assert_close(method.form(operands, sizes, None), reference(operands), operands.gradient(), group)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    ("positions", "inputs", "outputs"), [(197, 192, 576), (49, 320, 100), (1, 512, 100), (3, 4, 5)]
)
def test_linear(positions, inputs, outputs, group):
    gy, x = torch.randn(5, outputs, positions), torch.randn(5, inputs, positions)
    expected = gy.double() @ x.double().mT
    operands = LinearOperands(gy, x, torch.empty(outputs, inputs))
    sizes = sizes_of(operands, group)
    methods = applying(sizes)
    if group == 1:
        kernels = {"fused", "squared"} if sizes.accelerated else set()
        assert {method.name for method in methods} == kernels | ({"gram"} if positions == 1 else {"matrix", "gram"})
    else:
        assert {"matrix", "ordinary"} <= {method.name for method in methods}
    for method in untested(methods, sizes):
        assert_close(method.form(operands, sizes, None), expected, operands.gradient(), group)


def test_without_onednn():
    """The products fall back to torch's own matrices where the library behind the fast ones is switched off."""
    gy, x = torch.randn(3, 256, 196), torch.randn(3, 128, 196)
    operands = LinearOperands(gy, x, torch.empty(256, 128))
    (matrix,) = [method for method in METHODS if method.name == "matrix"]
    fast = matrix.form(operands, operands.sizes(), None)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = matrix.form(operands, operands.sizes(), None)
    torch.testing.assert_close(fast.squares, plain.squares, rtol=1e-5, atol=0)
    torch.testing.assert_close(fast.gradient, plain.gradient, rtol=1e-5, atol=1e-3)
