"""Calls of convolutions, to hold kernels for them against each example's own weight gradient in double precision."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch

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
    programs: int | None = None  # that a kernel asks for, on one multiprocessor; None: on the device as it is

    @property
    def geometry(self):
        return self.kernel, self.stride, self.padding, self.dilation

    @property
    def bound(self):
        return BOUND[self.dtype]

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
        if self.layout == "features last":  # [B, T, features], as a linear layer has them
            return tensor.squeeze(-1).mT.contiguous().mT.unsqueeze(-1)
        if self.layout == "window":  # of a larger tensor, so that no dimension is dense, nor the beginning aligned
            larger = tensor.new_full([size + 3 for size in tensor.shape], torch.nan)
            window = larger[tuple(slice(1, 1 + size) for size in tensor.shape)]
            return window.copy_(tensor)
        if self.layout == "batch inside":  # channels, height, width, batch
            return tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
        return tensor

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

    def errors(self, results, gy, x):
        """Return the relative error of each result by name: gradients in norm, of squares the worst one.

        A result of several dimensions is the gradient, one of a single dimension the squares.
        """
        gradient, squares = self.expected(gy, x)
        errors = {}
        for name, result in results.items():
            assert result.dtype == torch.float32
            result = result.double().cpu()
            if result.dim() > 1:
                assert result.shape == gradient.shape
                errors[name] = ((result - gradient).norm() / gradient.norm()).item()
            else:
                assert result.shape == squares.shape
                errors[name] = ((result - squares) / squares).abs().max().item()
        return errors

    def assert_exact(self, errors):
        assert errors and all(error < self.bound for error in errors.values()), errors


@contextmanager
def on_one_processor(module, setting, programs):
    """Have a module's kernels ask for so many programs, by its `setting`, on a device of one multiprocessor."""
    with mock.patch.multiple(module, **{setting: programs, "processors": lambda device: 1}):
        module._plan.cache_clear()
        yield
    module._plan.cache_clear()


def check_on_cuda(case, results):
    """Check what `results(case, gy, x)` gives by name: twice the same bits, and in a graph that is replayed."""
    gy, x = case.operands("cuda")
    first, second = results(case, gy, x), results(case, gy, x)
    assert all(torch.equal(first[name], second[name]) for name in first)
    case.assert_exact(case.errors(first, gy, x))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(case, gy, x)
    for tensor, new in zip((gy, x), case.operands("cuda", seed=1)):
        tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    case.assert_exact(case.errors(captured, gy, x))


def print_errors(cases, results, **more):
    """Print the errors of every case, and what else there is, for `interpreted` to read."""
    errors = {}
    for name, case in cases.items():
        gy, x = case.operands("cpu")
        errors[name] = case.errors(results(case, gy, x), gy, x)
    print(json.dumps({"errors": errors} | more))
