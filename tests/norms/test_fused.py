"""The fused kernel against each example's own weight gradient in double precision.

On a processor it runs in triton's interpreter, which has to be asked for before triton is first imported: in a process
of its own, this file run as a script, one for all cases.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
import torch

from clars.native.triton import compiling
from clars.native.triton import fused_products as fused

# On the gradient, in norm, and on each example's square. Products of 16-bit inputs are exact in float32, so only the
# sums round, which tensor cores do less carefully.
BOUND = {torch.float32: 2e-6, torch.bfloat16: 1e-5, torch.float16: 1e-5}


@dataclass(frozen=True)
class Case:
    x: tuple[int, ...]
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: torch.dtype = torch.float32
    layout: str = "nchw"
    group: int = 1
    programs: int | None = None  # on a device of one multiprocessor; None: on the device as it is

    def operands(self, device, seed=0):
        """Return gy and x in the case's layout, each example of a scale of its own."""
        generator = torch.Generator().manual_seed(seed)
        examples, _, *size = self.x
        settings = zip(size, self.kernel, self.stride, self.padding, self.dilation)
        out = [(n + 2 * pad - step * (k - 1) - 1) // stride + 1 for n, k, stride, pad, step in settings]
        scale = torch.linspace(0.5, 2, examples).view(-1, 1, 1, 1)
        gy = torch.randn(examples, self.outputs, *out, generator=generator) * scale
        x = torch.randn(self.x, generator=generator)
        return [self._laid_out(tensor.to(device, self.dtype)) for tensor in (gy, x)]

    def _laid_out(self, tensor):
        if self.layout == "channels last":
            return tensor.to(memory_format=torch.channels_last)
        if self.layout == "window":  # of a larger tensor, so that no dimension is dense, nor the beginning aligned
            larger = tensor.new_full([size + 3 for size in tensor.shape], torch.nan)
            window = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
            return window.copy_(tensor)
        if self.layout == "batch inside":  # channels, height, width, batch
            return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        return tensor

    def result(self, gy, x):
        arguments = (self.kernel, self.stride, self.padding, self.dilation, self.groups, self.group)
        if self.programs is None:
            return fused.fused_products(gy, x, *arguments)
        few = {"PROGRAMS_PER_PROCESSOR": self.programs, "processors": lambda device: 1}
        with mock.patch.multiple(fused, **few):
            return fused.fused_products(gy, x, *arguments)

    def expected(self, gy, x):
        """Return the gradient and the squared norms in float64, from one call per example or group."""
        gy, x = gy.double().cpu(), x.double().cpu()
        weight = x.new_empty(self.outputs, x.shape[1] // self.groups, *self.kernel)
        form = (None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, (False, True, False))
        own = [
            torch.ops.aten.convolution_backward(gy_one, x_one, weight, *form)[1]
            for gy_one, x_one in zip(gy.split(self.group), x.split(self.group))
        ]
        return sum(own), torch.stack([gradient.square().sum() for gradient in own])

    def errors(self, result, gy, x):
        """Return the relative errors of the gradient, in norm, and of the worst of the squares."""
        gradient, squares = (tensor.double().cpu() for tensor in result)
        expected, expected_squares = self.expected(gy, x)
        assert gradient.shape == expected.shape and squares.shape == expected_squares.shape
        worst = ((squares - expected_squares) / expected_squares).abs().max()
        return {"gradient": ((gradient - expected).norm() / expected.norm()).item(), "squares": worst.item()}

    def check(self, device):
        """Return the errors, and whether the types are right and two calls give the same bits."""
        gy, x = self.operands(device)
        first, second = self.result(gy, x), self.result(gy, x)
        return self.errors(first, gy, x) | {
            "float32": all(tensor.dtype == torch.float32 for tensor in first),
            "repeatable": all(torch.equal(a, b) for a, b in zip(first, second)),
        }


CASES = {
    "1x1": Case((3, 20, 6, 6), 33, (1, 1)),
    "linear": Case((5, 40, 1, 1), 24, (1, 1)),
    "linear with positions": Case((3, 24, 17, 1), 18, (1, 1), layout="channels last"),
    "3x3": Case((3, 10, 8, 8), 20, (3, 3), padding=(1, 1)),
    "stride": Case((3, 10, 9, 9), 20, (3, 3), (2, 2), (1, 1)),
    "unequal strides": Case((2, 5, 9, 8), 4, (2, 3), (3, 2), (1, 0)),
    "dilation": Case((3, 10, 9, 9), 20, (3, 3), (1, 1), (2, 2), (2, 2)),
    "unequal padding": Case((3, 7, 6, 8), 9, (3, 5), padding=(1, 2)),
    "not square": Case((2, 6, 5, 11), 70, (1, 4), (1, 2), (0, 1), (1, 2)),
    "groups": Case((3, 12, 6, 6), 10, (3, 3), padding=(1, 1), groups=2),
    "depthwise": Case((3, 6, 6, 6), 6, (3, 3), padding=(1, 1), groups=6),
    "depthwise, two outputs each": Case((2, 4, 6, 5), 8, (3, 3), (2, 1), (1, 1), groups=4, layout="channels last"),
    "channels last": Case((3, 16, 7, 6), 32, (3, 3), padding=(1, 1), layout="channels last"),
    "channels last, groups, stride": Case((3, 12, 7, 6), 8, (3, 3), (2, 2), (1, 1), groups=2, layout="channels last"),
    "window": Case((3, 7, 6, 5), 18, (3, 3), padding=(1, 1), layout="window"),
    "batch inside": Case((3, 7, 6, 5), 18, (3, 3), padding=(1, 1), layout="batch inside"),
    "many tiles": Case((2, 17, 5, 7), 130, (3, 3), padding=(1, 1)),
    "one program": Case((5, 6, 6, 7), 8, (3, 3), padding=(1, 1), programs=1),
    "uneven split": Case((7, 6, 6, 7), 8, (3, 3), padding=(1, 1), programs=3),
    "uneven split, groups": Case((7, 6, 6, 7), 8, (3, 3), padding=(1, 1), groups=2, programs=6),
    "groups of two": Case((6, 7, 6, 8), 9, (3, 3), padding=(1, 1), group=2, programs=2),
    "groups of three and a rest": Case((8, 7, 6, 8), 9, (3, 3), (2, 1), (1, 1), groups=1, group=3, programs=8),
    "one group": Case((5, 6, 6, 7), 8, (3, 3), padding=(1, 1), groups=2, group=5, programs=4),
    "bfloat16, groups of four": Case(
        (9, 32, 7, 7), 48, (3, 3), (2, 2), (1, 1), dtype=torch.bfloat16, layout="channels last", group=4, programs=6
    ),
    "bfloat16": Case((3, 20, 9, 7), 33, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "bfloat16, channels last": Case(
        (4, 32, 7, 7), 48, (3, 3), (2, 2), (1, 1), dtype=torch.bfloat16, layout="channels last", programs=6
    ),
    "bfloat16, wide tiles": Case((5, 128, 6, 7), 256, (1, 1), dtype=torch.bfloat16, layout="channels last", programs=4),
    "bfloat16, window": Case((3, 16, 6, 5), 32, (3, 3), padding=(1, 1), dtype=torch.bfloat16, layout="window"),
    "float16": Case((3, 20, 9, 7), 33, (3, 3), padding=(1, 1), dtype=torch.float16),
}

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
on_cuda = pytest.mark.gpu
with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


def assert_exact(report, case):
    assert report["gradient"] < BOUND[case.dtype] and report["squares"] < BOUND[case.dtype], report
    assert report.get("float32", True) and report.get("repeatable", True), report


@pytest.fixture(scope="module")
def interpreted():
    """What the interpreter made of every case."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@with_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted(interpreted, name):
    assert_exact(interpreted[name], CASES[name])


def test_unavailable_on_a_processor(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not compiling.available("cpu")


def test_unavailable_without_triton(monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    compiling._installed.cache_clear()
    assert not compiling.available("cuda")
    compiling._installed.cache_clear()


@on_cuda
@with_triton
@each_case
def test_cuda(case):
    assert compiling.available("cuda")
    assert_exact(case.check("cuda"), case)


@on_cuda
@with_triton
@each_case
def test_cuda_graph(case):
    """A captured call, replayed on new inputs."""
    gy, x = case.operands("cuda")
    case.result(gy, x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = case.result(gy, x)
    for tensor, new in zip((gy, x), case.operands("cuda", seed=1)):
        tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    assert_exact(case.errors(result, gy, x), case)


if __name__ == "__main__":
    assert compiling.available("cpu")
    print(json.dumps({name: case.check("cpu") for name, case in CASES.items()}))
