"""The compiled kernels: the same values as torch's operators, on any number of threads; and what if there are none."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from clars import native
from clars.native.squares import squared_norms
from clars.norms.methods import METHODS
from clars.norms.methods.chooser import Chooser
from clars.norms.methods.measure import Measure, weight_contribution
from clars.norms.methods.operands import Geometry
from clars.norms.rules.convolution import Convolution
from clars.optim.update import Momentum, update

needs_kernels = pytest.mark.skipif(not native.load().loaded, reason=native.load().text)
METHOD = {method.name: method for method in METHODS}
PLAIN = Geometry((1, 1), (1, 1), (1, 1), 1)


def form(name, operands, group=1):
    return METHOD[name].form(operands, replace(operands.sizes(), group=group), None)


def by_group(per_example, group):
    return torch.stack([some.sum(0) for some in per_example.split(group)])


def squares(per_example):
    return per_example.double().flatten(1).square().sum(1)


def per_example_gradients(function, x, gy, *parameters):
    """By definition: each example's output gradient alone, through autograd in float64."""
    doubles = [value.double().requires_grad_() for value in (x, *parameters)]
    y = function(*doubles)
    whole = torch.autograd.grad(y, doubles, gy.double(), retain_graph=True)
    rows = []
    for i in range(len(x)):
        alone = torch.zeros_like(y)
        alone[i] = gy[i]
        rows.append(torch.autograd.grad(y, doubles[1:], alone, retain_graph=True))
    return whole, [torch.stack(each) for each in zip(*rows)]


# channels, outputs, size, kernel, stride, padding, dilation: what fills no vector, no tile, no block of windows
SMALL = [
    (1, 6, (28, 28), (5, 5), (1, 1), (2, 2), (1, 1)),
    (6, 16, (9, 14), (3, 5), (2, 1), (0, 2), (2, 3)),
    (17, 19, (12, 5), (1, 3), (1, 2), (0, 1), (1, 1)),
    (16, 13, (40, 33), (3, 3), (1, 1), (1, 1), (1, 2)),
    (5, 1, (3, 3), (3, 3), (1, 1), (0, 0), (1, 1)),
]

# The same with a group per channel: what fills no vector, outputs that share an input, and uneven strides of the window
DEPTHWISE = [
    (37, 37, (13, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    (16, 16, (12, 17), (3, 3), (2, 2), (1, 1), (1, 1)),
    (5, 15, (9, 11), (5, 3), (2, 3), (2, 1), (1, 2)),
    (18, 18, (9, 11), (2, 5), (3, 1), (0, 2), (1, 2)),
    (20, 20, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    (3, 3, (70, 50), (7, 7), (1, 1), (3, 3), (1, 1)),
    (18, 18, (33, 21), (5, 3), (1, 1), (1, 2), (1, 2)),
    (5, 5, (12, 17), (3, 3), (2, 2), (1, 1), (1, 1)),
]

# channels, outputs, groups, size, kernel, stride, padding, dilation: groups whose channels fill vectors of the kernel's
# tiles, or none, and outputs that do not; blocks of rows, images narrower than what is laid out at a time
IN_GROUPS = [
    (32, 48, 2, (10, 10), (3, 3), (1, 1), (1, 1), (1, 1)),
    (24, 18, 3, (40, 33), (3, 3), (2, 2), (1, 1), (1, 1)),
    (64, 64, 2, (9, 23), (3, 3), (1, 1), (1, 1), (1, 1)),
    (20, 35, 5, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1)),
    (21, 14, 7, (9, 14), (3, 5), (2, 1), (0, 2), (2, 3)),
    (34, 6, 2, (12, 9), (1, 3), (1, 2), (0, 1), (1, 1)),
    (33, 9, 3, (8, 8), (1, 1), (1, 1), (0, 0), (1, 1)),
    (36, 10, 2, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)),
    (6, 4, 2, (70, 61), (2, 5), (3, 1), (1, 0), (1, 1)),
]

# For inner products of windows: many positions and few, and of each stride those that overlap, touch or leave gaps
WINDOWS = [
    (7, 9, (9, 14), (3, 3), (1, 1), (1, 1), (1, 1)),
    (7, 9, (9, 14), (3, 3), (2, 2), (1, 1), (1, 1)),
    (9, 5, (8, 11), (3, 5), (2, 1), (0, 2), (1, 3)),
    (150, 300, (6, 5), (3, 3), (2, 2), (1, 1), (1, 1)),
    (140, 20, (7, 5), (3, 3), (2, 2), (2, 1), (2, 2)),
    (40, 20, (12, 11), (5, 4), (3, 2), (2, 1), (1, 2)),
    (20, 30, (4, 4), (3, 3), (2, 2), (1, 1), (1, 1)),
    (200, 30, (2, 2), (3, 3), (2, 2), (1, 1), (1, 1)),
    (20, 30, (1, 3), (3, 3), (1, 2), (1, 1), (1, 1)),
    (20, 30, (8, 6), (2, 2), (2, 2), (0, 0), (1, 1)),
    (20, 30, (9, 11), (2, 3), (4, 5), (1, 1), (1, 1)),
    (20, 30, (7, 7), (3, 1), (1, 2), (1, 0), (1, 1)),
]


@needs_kernels
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", WINDOWS, ids=str)
def test_inner_products_of_windows(shape, memory_format, threads):
    torch.manual_seed(0)
    channels, outputs, size, kernel, *geometry = shape
    rule = Convolution(Geometry(*geometry, 1))
    x, weight = torch.randn(5, channels, *size), torch.randn(outputs, channels, *kernel)
    gy = torch.randn_like(rule.forward(x, weight, None)[0])
    x, gy = (value.to(memory_format=memory_format) for value in (x, gy))
    got = form("gram", rule.operands(gy, x, weight))
    _, (each,) = per_example_gradients(lambda x, w: F.conv2d(x, w, None, *geometry), x, gy, weight)
    torch.testing.assert_close(got.squares.double(), squares(each), rtol=2e-6, atol=0)


@needs_kernels
@pytest.mark.parametrize(("mean", "off"), [(1, 1e-6), (10, 1e-5), (100, 2e-3)])
def test_inner_products_lose_digits_where_the_input_is_far_from_zero(mean, off):
    """And the output gradient sums to zero over the positions, where large terms of both signs meet. docs/cost.md"""
    torch.manual_seed(0)
    x, gy = torch.randn(4, 256, 4, 4) + mean, torch.randn(4, 512, 4, 4)
    gy -= gy.mean((2, 3), keepdim=True)
    operands = Convolution(Geometry((1, 1), (0, 0), (1, 1), 1)).operands(gy, x, torch.randn(512, 256, 1, 1))
    expected = squares(gy.double().flatten(2) @ x.double().flatten(2).mT)
    found = {name: form(name, operands).squares for name in ("gram", "matrix")}
    torch.testing.assert_close(found["gram"].double(), expected, rtol=off, atol=0)
    torch.testing.assert_close(found["matrix"].double(), expected, rtol=1e-6, atol=0)


@needs_kernels
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_inner_products_of_what_is_no_number_are_none(wrong, size, stride):
    rule = Convolution(Geometry((stride,) * 2, (0, 0), (1, 1), 1))
    x, weight = torch.randn(3, 4, 9, 9), torch.randn(5, 4, size, size)
    x[1, 2, 6, 6] = wrong
    gy = torch.randn_like(rule.forward(x, weight, None)[0])
    found = form("gram", rule.operands(gy, x, weight)).squares
    assert found.isfinite().tolist() == [True, False, True]


@needs_kernels
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("shape", "depthwise"), [(shape, False) for shape in SMALL] + [(shape, True) for shape in DEPTHWISE], ids=str
)
def test_small_and_depthwise_convolutions(shape, depthwise, memory_format, group, threads):
    torch.manual_seed(0)
    channels, outputs, size, kernel, *geometry = shape
    groups = channels if depthwise else 1
    rule = Convolution(Geometry(*geometry, groups))
    x, weight = torch.randn(5, channels, *size), torch.randn(outputs, channels // groups, *kernel)
    gy = torch.randn_like(rule.forward(x, weight, None)[0])
    x, gy = (value.to(memory_format=memory_format) for value in (x, gy))
    got = form("direct", rule.operands(gy, x, weight), group)
    conv = lambda x, w: F.conv2d(x, w, None, *geometry, groups)  # noqa: E731
    (_, whole), (each,) = per_example_gradients(conv, x, gy, weight)
    assert (got.gradient.double() - whole).norm() <= 1e-6 * whole.norm()
    bound = 2e-6 * group**0.5  # a longer sum in float32
    torch.testing.assert_close(got.squares.double(), squares(by_group(each, group)), rtol=bound, atol=0)


@needs_kernels
@pytest.mark.parametrize("group", [1, 2, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", IN_GROUPS, ids=str)
def test_convolutions_in_groups(shape, memory_format, group, threads):
    torch.manual_seed(0)
    channels, outputs, groups, size, kernel, *geometry = shape
    rule = Convolution(Geometry(*geometry, groups))
    x, weight = torch.randn(5, channels, *size), torch.randn(outputs, channels // groups, *kernel)
    gy = torch.randn_like(rule.forward(x, weight, None)[0])
    x, gy = (value.to(memory_format=memory_format) for value in (x, gy))
    got = form("tiled", rule.operands(gy, x, weight), group)
    conv = lambda x, w: F.conv2d(x, w, None, *geometry, groups)  # noqa: E731
    (_, whole), (each,) = per_example_gradients(conv, x, gy, weight)
    assert (got.gradient.double() - whole).norm() <= 4e-7 * whole.norm()
    torch.testing.assert_close(got.squares.double(), squares(by_group(each, group)), rtol=5e-7, atol=0)


@needs_kernels
def test_convolutions_in_groups_of_views(threads):
    """Every other example, channel and column of larger tensors."""
    torch.manual_seed(0)
    x, gy = torch.randn(10, 32, 9, 22)[::2, ::2, :, ::2], torch.randn(10, 24, 9, 11)[::2, ::2]
    weight = torch.randn(12, 4, 3, 3)
    got = form("tiled", Convolution(PLAIN._replace(groups=4)).operands(gy, x, weight))
    (_, whole), (each,) = per_example_gradients(lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 4), x, gy, weight)
    assert (got.gradient.double() - whole).norm() <= 4e-7 * whole.norm()
    torch.testing.assert_close(got.squares.double(), squares(each), rtol=5e-7, atol=0)


@needs_kernels
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("dims", [(0, 1, 2), (0, 2, 1), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("shape", [(5, 40, 300), (3, 7, 5000), (6, 65, 1)], ids=str)
def test_sums_over_positions(shape, dims, group, threads):
    """Whatever lies together in memory: positions, outputs or examples."""
    torch.manual_seed(0)
    gy = (torch.randn(shape) + 2).permute(dims).contiguous().permute(*map(dims.index, range(3)))
    gradient, found = native.kernel("position_sums")(gy, group)
    each = gy.double().sum(2)
    torch.testing.assert_close(gradient.double(), each.sum(0), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.double(), squares(by_group(each, group)), rtol=1e-6, atol=0)


@needs_kernels
def test_a_part_of_the_batch_has_the_squares_of_the_whole(threads):
    torch.manual_seed(0)
    rule, weight, chooser = Convolution(PLAIN), torch.randn(64, 32, 3, 3), Chooser()
    for size in (4, 24):  # by inner products, and by the products themselves
        x, gy = torch.randn(8, 32, size, size), torch.randn(8, 64, size, size)
        operands = rule.operands(gy, x, weight)
        whole = weight_contribution(operands, Measure(chooser))
        part = weight_contribution(operands, Measure(chooser, slice(2, 5)))
        torch.testing.assert_close(part.squares, whole.squares[2:5], rtol=2e-6, atol=0)
        torch.testing.assert_close(part.gradient, whole.gradient, rtol=1e-5, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_update_is_that_of_torch_s_operators_bit_for_bit(nesterov, threads):
    torch.manual_seed(0)
    shapes, ends = [(40_001,), (8, 4, 3, 3), (64, 32, 5, 5), ()], []
    for means in (nullcontext, native.suspended):
        made = torch.Generator().manual_seed(1)
        w, g, b = ([torch.randn(shape, generator=made) for shape in shapes] for _ in range(3))
        w[1], g[1], b[1] = (value[1].to(memory_format=torch.channels_last) for value in (w, g, b))
        with means():
            update(w, g, b, [torch.tensor(0.3 + k) for k in range(4)], Momentum(0.9, 0.1, nesterov))
        ends.append(w + b)
    assert all(torch.equal(one, other) for one, other in zip(*ends))


@needs_kernels
def test_squared_norms_of_tensors(threads):
    tensors = [torch.randn(n) for n in (1, 5, 3000, 100_003)] + [torch.randn(4, 3, 2, 2).mT]
    expected = torch.stack([tensor.double().square().sum() for tensor in tensors])
    torch.testing.assert_close(squared_norms(tensors, torch.float32).double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(squared_norms(tensors[:4], torch.float32).double(), expected[:4], rtol=3e-7, atol=0)


DEADLOCK = """
import torch
from clars.norms.methods.chooser import Chooser
from clars.norms.methods.measure import Measure, weight_contribution
from clars.norms.methods.operands import ConvolutionOperands, Geometry
torch.set_num_threads(2)
x, gy = torch.randn(8, 64, 28, 28), torch.randn(8, 64, 28, 28)
operands = ConvolutionOperands(gy, x, torch.randn(64, 64, 3, 3), Geometry((1, 1), (1, 1), (1, 1), 1))
operands.of(slice(1)).gradient()
for _ in range(3):
    weight_contribution(operands, Measure(Chooser()))
"""


@needs_kernels
def test_a_primitive_made_for_all_threads_is_not_met_on_one():
    """oneDNN keeps what it made for a shape and number of threads; on a thread alone it would wait for the others.

    Triggered by a gradient of the same shape before, formed by two threads.
    """
    subprocess.run([sys.executable, "-c", DEADLOCK], check=True, timeout=120)


@needs_kernels
def test_memory_bounds_the_examples_under_way():
    x, gy = torch.randn(8, 64, 28, 28), torch.randn(8, 64, 28, 28)
    torch.set_num_threads(2)
    sizes = Convolution(PLAIN).operands(gy, x, torch.randn(64, 64, 3, 3)).sizes()
    torch.set_num_threads(1)
    one = METHOD["each"].bytes(sizes)
    assert [len(METHOD["each"].pieces(sizes, memory)) for memory in (None, 2 * one, 2 * one - 1, 1)] == [4, 4, 8, 8]


def test_fewer_examples_than_threads_are_left_to_torch():
    x, before = torch.randn(3, 4), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert not native.applies(x, x)
        torch.set_num_threads(3)
        assert native.applies(x, x) == native.load().loaded
        assert not native.applies(x.double(), x.double())
    finally:
        torch.set_num_threads(before)


STATE = "import json; from clars.native import load; s = load(); print(json.dumps([s.loaded, s.text]))"


SWITCHED_OFF = os.environ.get("CLARS_CPU_KERNELS") == "0"


def state(tmp_path, **environment):
    without_switch = {name: value for name, value in os.environ.items() if name != "CLARS_CPU_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", STATE],
        env=without_switch | {"CLARS_CACHE": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(SWITCHED_OFF, reason="CLARS_CPU_KERNELS=0 switches the kernels off")
@pytest.mark.skipif(not (sys.platform == "linux" and shutil.which("g++")), reason="needs g++ on Linux")
def test_they_compile_where_they_can():
    """Else all the tests above would be left out, and nobody would know."""
    assert native.load().loaded, native.load().text


def test_switched_off(tmp_path):
    assert state(tmp_path, CLARS_CPU_KERNELS="0") == [False, "switched off by CLARS_CPU_KERNELS=0"]


def test_without_a_compiler(tmp_path):
    loaded, text = state(tmp_path, CXX="no-such-compiler")
    assert not loaded
    assert "no C++ compiler" in text or "not made for" in text or "oneDNN" in text


@needs_kernels
def test_a_compiler_that_fails_leaves_nothing(tmp_path):
    broken = tmp_path / "compiler"
    broken.write_text("#!/bin/sh\necho 'error: broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    loaded, text = state(tmp_path / "cache", CXX=str(broken))
    assert not loaded
    assert "error: broken" in text
    assert not any(path.is_file() and path.suffix != ".lock" for path in (tmp_path / "cache").rglob("*"))


@needs_kernels
@pytest.mark.slow
def test_of_two_processes_one_compiles(tmp_path):
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", STATE],
            env=os.environ | {"CLARS_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in pair]
    assert [json.loads(out.splitlines()[-1])[0] for out, _ in said] == [True, True]
    assert sum("compiling" in errors for _, errors in said) == 1
    assert sorted(path.suffix for path in (tmp_path / "kernels").iterdir()) == [".lock", ".sha256", ".so"]
