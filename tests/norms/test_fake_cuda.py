"""What runs on CUDA, with tensors that say they are there and hold nothing: devices, types, shapes and strides fit."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from clars import native
from clars.norms.methods.chooser import Chooser, applying
from clars.norms.rules import CALLS, linear
from clars.norms.rules.rule import Measure

# Older torch asks the driver, in some operators, even where a tensor holds nothing.
PRETENDS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11) or torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not PRETENDS, reason="needs torch 2.11, or a CUDA device")

TYPES = {"float64": (torch.float64,) * 2, "float32": (torch.float32,) * 2, "bfloat16": (torch.bfloat16, torch.float32)}
LAYERS = {
    "convolution": (F.conv2d, (4, 6, 9, 8), (8, 6, 3, 3), {"stride": 2, "padding": 1}),
    "pointwise": (F.conv2d, (4, 6, 9, 8), (8, 6, 1, 1), {}),
    "groups": (F.conv2d, (4, 6, 9, 8), (4, 3, 3, 3), {"groups": 2}),
    "depthwise": (F.conv2d, (4, 6, 9, 8), (6, 1, 3, 3), {"groups": 6}),
    "one dimension": (F.conv1d, (4, 6, 9), (8, 6, 3), {}),
    "three dimensions": (F.conv3d, (4, 6, 5, 5, 4), (8, 6, 2, 2, 2), {}),
    "linear": (F.linear, (4, 7, 6), (8, 6), {}),
    "batch norm": (F.batch_norm, (4, 6, 5, 5), (6,), {"training": True}),
    "batch norm in evaluation mode": (F.batch_norm, (4, 6, 5, 5), (6,), {"training": False}),
    "group norm": (F.group_norm, (4, 6, 5, 5), (6,), {"num_groups": 3}),
    "instance norm": (F.instance_norm, (4, 6, 5, 5), (6,), {}),
    "layer norm": (F.layer_norm, (4, 5, 6), (6,), {"normalized_shape": (6,)}),
}


class Find:
    """Takes weight and bias for parameters."""

    def __call__(self, tensor):
        return None


def call_of(name, x_type, weight_type, channels_last):
    """Return the layer's call, and input and output gradient, on a device that is not there."""
    function, shape, weight_shape, options = LAYERS[name]
    x = torch.randn(shape, device="cuda", dtype=x_type)
    if channels_last and len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    weight, bias = (torch.randn(size, device="cuda", dtype=weight_type) for size in (weight_shape, weight_shape[:1]))
    if function in (F.conv1d, F.conv2d, F.conv3d, F.linear):  # as autocast does
        weight, bias = weight.to(x_type), bias.to(x_type)
    else:
        x = x if function is F.batch_norm else x.to(weight_type)
    running = [torch.rand(6, device="cuda") for _ in range(2)] if function is F.batch_norm else []
    return CALLS[function](Find(), x, *running, weight=weight, bias=bias, **options)


@pytest.mark.parametrize("channels_last", [False, True], ids=["", "channels last"])
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("suspended", [False, True], ids=["", "as compiled"])
def test_a_rule(name, types, channels_last, suspended):
    with FakeTensorMode(), native.suspended() if suspended else torch.no_grad():
        rule, x, weight, bias, *_ = call_of(name, *TYPES[types], channels_last)
        y, saved = rule.forward(x, weight, bias)
        for rows, group in ((slice(None), 1), (slice(1, 3), 1), (slice(None), 3)):
            measure = Measure(Chooser(timed=False), rows, group=group)
            got = rule.backward(torch.empty_like(y), x, weight, saved, (True, True, True), measure)
            assert got.input.shape == x.shape and got.input.dtype == x.dtype
            examples = 2 if rows != slice(None) else -(-4 // group)
            for (gradient, squares), parameter in zip((got.weight, got.bias), (weight, bias)):
                assert gradient.shape == parameter.shape and gradient.dtype == parameter.dtype
                assert squares.shape == (examples,)
                assert squares.dtype == (torch.float64 if types == "float64" else torch.float32)
                assert gradient.device.type == squares.device.type == "cuda"
            if "norm" in name and not suspended:
                assert got.input.stride() == x.stride()


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("name", [name for name in LAYERS if "norm" not in name])
def test_methods(name, types, group):
    with FakeTensorMode(), torch.no_grad():
        rule, x, weight, *_ = call_of(name, *TYPES[types], False)
        y, _ = rule.forward(x, weight, None)
        operands = (linear.operands if name == "linear" else rule.operands)(torch.empty_like(y), x, weight)
        sizes = replace(operands.sizes(), group=group)
        kernels = types != "float64" and name != "three dimensions"
        methods = applying(sizes)
        assert kernels == any(method.name in ("fused", "depthwise") for method in methods)
        for method in methods:
            gradient, squares = method.form(operands, sizes, None)
            assert gradient is None or gradient.shape == weight.shape
            assert squares.shape == (-(-4 // group),) and squares.device.type == "cuda"
            assert 0 < method.operations(sizes) < 1e9
