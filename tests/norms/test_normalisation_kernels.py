"""Normalisations' backward passes, by kernels and by their twins, against autograd's in double precision.

On a processor the kernels run in triton's interpreter, which has to be asked for before triton is first imported: in a
process of its own, this file run as a script, one for all cases.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

import gpu_code
import pytest
import scripts
import torch
from torch.nn import functional as F

from clars.native import twins
from clars.native.triton import compiling, normalisation

EPS = 1e-5

# Blocks so small that every loop of a kernel goes round several times.
SMALL = {"TILE": 64, "LONG": 16, "SHORT": 4, "WHOLE_ROW": 32, "_NORM": (2, 8), "_SUM": (4, 16), "_MEAN": 16}

# On sums and squares, which are float32 for all but float64; and on the gradient of x, which is of x's own type. The
# interpreter cuts off what does not fit into 16 bits.
BOUND = {torch.float64: 1e-12} | dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), 2e-6)
INPUT_BOUND = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}

RESULTS = ("gradient of x", "scale", "shift", "squares of scale", "squares of shift")


@dataclass(frozen=True)
class Case:
    kind: str  # "batch", "group" or "layer"
    shape: tuple[int, ...]
    groups: int = 1
    training: bool = True
    dtype: torch.dtype = torch.float32
    weight: torch.dtype = torch.float32
    layout: str = "contiguous"
    measured: tuple[int, int] | None = None  # examples, from the first to before the last
    group: int = 1
    offset: float = 0.0  # of means, in standard deviations
    needs_input: bool = True
    programs: int | None = (
        None  # in small blocks, on a device of one multiprocessor; None: blocks and device as they are
    )

    def operands(self, device, seed=0):
        """Return gy and x in the case's layout, each example of a scale of its own, the statistics and the weight."""
        generator = torch.Generator().manual_seed(seed)
        scales = torch.linspace(0.5, 2, self.shape[0]).view(-1, *[1] * (len(self.shape) - 1))
        gy = (torch.randn(self.shape, generator=generator) * scales).to(device, self.dtype)
        x = (torch.randn(self.shape, generator=generator) * scales + self.offset).to(device, self.dtype)
        features = self.shape[2 if self.kind == "layer" else 1]
        weight = (torch.rand(features, generator=generator) + 0.5).to(device, self.weight)
        gy, x = self._laid_out(gy, x)
        return gy, x, *self._statistics(x), weight

    def _laid_out(self, gy, x):
        if self.layout == "channels last":
            return [tensor.to(memory_format=torch.channels_last) for tensor in (gy, x)]
        if self.layout == "channels of more":  # as a network that concatenates has them
            more = [torch.cat([tensor] * 3, 1).to(memory_format=torch.channels_last) for tensor in (gy, x)]
            return [tensor.narrow(1, 1, self.shape[1]).copy_(own) for tensor, own in zip(more, (gy, x))]
        if self.layout == "unlike":
            return gy, x.to(memory_format=torch.channels_last)
        if self.layout == "transposed":
            return [tensor.transpose(-1, -2).contiguous().transpose(-1, -2) for tensor in (gy, x)]
        if self.layout == "expanded":  # gy, as of a sum over positions
            return gy[..., :1].expand_as(gy), x
        if self.layout == "window":  # of a larger tensor, so that no dimension is dense, nor the beginning aligned
            windows = []
            for tensor in (gy, x):
                larger = tensor.new_full([size + 3 for size in tensor.shape], torch.nan)
                windows.append(larger[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor))
            return windows
        return gy, x

    def _statistics(self, x):
        """Return mean and rstd as accelerators have them, in float32 or float64."""
        wide = x.double()
        if self.kind == "layer":
            wide = wide.flatten(2)
        elif self.kind == "group":
            wide = wide.unflatten(1, (self.groups, -1)).flatten(2)
        else:
            wide = wide.transpose(0, 1).flatten(1)
        mean = wide.mean(-1)
        variance = (wide - mean.unsqueeze(-1)).square().mean(-1)
        if not self.training:
            mean, variance = mean + 0.1, variance * 1.3
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return mean.to(dtype), (variance + EPS).rsqrt().to(dtype)

    @property
    def rows(self):
        return self.measured or (0, self.shape[0])

    def result(self, functions, gy, x, mean, rstd, weight):
        """Return what the kernels, or their twins, make of the operands."""
        tail = (self.needs_input, *self.rows, self.group)
        if self.kind == "batch":
            return functions.batch_norm_backward(gy, x, mean, rstd, weight, self.training, *tail)
        if self.kind == "group":
            return functions.group_norm_backward(gy, x, mean, rstd, weight, self.groups, *tail)
        return functions.layer_norm_backward(gy, x, mean, rstd, weight, *tail)

    def expected(self, gy, x, mean, rstd, weight):
        """Return the same in float64, from one call of autograd for each example."""
        gy, x, mean, rstd, weight = (value.detach().double().cpu() for value in (gy, x, mean, rstd, weight))
        x, weight, bias = x.requires_grad_(), weight.requires_grad_(), torch.zeros_like(weight, requires_grad=True)
        by_feature = (-1,) if self.kind == "layer" else (1, -1, *[1] * (x.dim() - 2))
        if self.kind == "batch":
            statistics = [value.view(by_feature) for value in (mean, rstd)]
            running = (None, None) if self.training else (mean, rstd**-2 - EPS)
            y = F.batch_norm(x, *running, weight, bias, self.training, eps=EPS)
        elif self.kind == "group":
            each = [value.repeat_interleave(x.shape[1] // self.groups, 1) for value in (mean, rstd)]
            statistics = [value.view(*x.shape[:2], *[1] * (x.dim() - 2)) for value in each]
            y = F.group_norm(x, self.groups, weight, bias, EPS)
        else:
            statistics = [value.view(*x.shape[:2], 1) for value in (mean, rstd)]
            y = F.layer_norm(x, x.shape[2:], weight, bias, EPS)
        (gx,) = torch.autograd.grad(y, x, gy)
        given = (x.detach() - statistics[0]) * statistics[1] * weight.view(by_feature) + bias.view(by_feature)
        own = [torch.autograd.grad(given[i], (weight, bias), gy[i], retain_graph=True) for i in range(len(x))]
        scale, shift = (torch.stack(terms) for terms in zip(*own))
        measured = [terms[slice(*self.rows)].split(self.group) for terms in (scale, shift)]
        squares = [torch.stack([terms.sum(0).square().sum() for terms in groups]) for groups in measured]
        return gx, scale.sum(0), shift.sum(0), *squares

    def errors(self, result, *operands):
        """Return the relative errors: of gradients in norm, of squares the worst."""
        errors = {}
        for name, value, expected in zip(RESULTS, result, self.expected(*operands)):
            if value is None:
                assert not self.needs_input
                continue
            assert value.shape == expected.shape, name
            off = value.double().cpu() - expected
            worst = (off / expected).abs().max() if name.startswith("squares") else off.norm() / expected.norm()
            errors[name] = worst.item()
        return errors

    @contextmanager
    def device(self):
        """Have the kernels launched for the case's device."""
        few = SMALL | {"PROGRAMS_PER_PROCESSOR": self.programs, "processors": lambda device: 1}
        with mock.patch.dict(vars(normalisation), {} if self.programs is None else few):
            self._forget_plans()
            yield
        self._forget_plans()

    @staticmethod
    def _forget_plans():
        for plan in (normalisation._by_row_plan, normalisation._by_channel_plan):
            plan.cache_clear()

    def check(self, functions, device):
        """Return the errors of a call, after looking at the types and the memory format."""
        operands = self.operands(device)
        with self.device():
            result = self.result(functions, *operands)
        gx, x = result[0], operands[1]
        if gx is not None:
            assert gx.dtype == x.dtype
            for form in (torch.contiguous_format, torch.channels_last) if x.dim() == 4 else ():
                assert gx.is_contiguous(memory_format=form) or not x.is_contiguous(memory_format=form)
        assert {value.dtype for value in result[1:]} == {operands[2].dtype}
        return self.errors(result, *operands)


bf16, fp16 = torch.bfloat16, torch.float16
LAST = {"layout": "channels last"}

CASES = {
    "batch": Case("batch", (3, 10, 5, 6)),
    "batch, channels last": Case("batch", (3, 20, 5, 6), **LAST),
    "batch, one position": Case("batch", (4, 40)),
    "batch, sequence": Case("batch", (3, 7, 300)),
    "batch, volume": Case("batch", (3, 5, 3, 4, 5)),
    "batch, one channel": Case("batch", (4, 1, 5, 7)),
    "batch, evaluation": Case("batch", (3, 10, 5, 6), training=False),
    "batch, bfloat16": Case("batch", (3, 16, 6, 8), dtype=bf16),
    "batch, bfloat16, channels last, evaluation": Case("batch", (3, 16, 6, 8), training=False, dtype=bf16, **LAST),
    "batch, bfloat16 weight": Case("batch", (3, 16, 6, 8), dtype=bf16, weight=bf16, **LAST),
    "batch, float16": Case("batch", (3, 16, 6, 8), dtype=fp16),
    "batch, window": Case("batch", (3, 7, 5, 6), layout="window"),
    "batch, window of a volume": Case("batch", (2, 3, 4, 3, 2), dtype=bf16, layout="window"),
    "batch, channels of more": Case("batch", (3, 20, 5, 6), layout="channels of more"),
    "batch, unlike": Case("batch", (3, 20, 5, 6), layout="unlike"),
    "batch, transposed": Case("batch", (3, 10, 5, 6), layout="transposed"),
    "batch, transposed columns": Case("batch", (6, 9), layout="transposed"),
    "batch, expanded": Case("batch", (3, 10, 5, 1, 6), layout="expanded"),
    "batch, some measured": Case("batch", (5, 8, 5, 6), measured=(1, 4)),
    "batch, groups of three and a rest": Case("batch", (7, 8, 5, 6), group=3, **LAST),
    "batch, small blocks": Case("batch", (3, 6, 70), programs=6, group=2),
    "batch, small blocks, channels last": Case("batch", (3, 20, 3, 7), programs=12, measured=(1, 3), **LAST),
    "batch, small blocks, one position": Case("batch", (5, 70), programs=1, dtype=bf16, group=5),
    "batch, means far off": Case("batch", (3, 8, 9, 11), offset=100.0),
    "batch, bfloat16, means far off": Case("batch", (3, 16, 9, 8), dtype=bf16, offset=100.0, **LAST),
    "batch, no input gradient": Case("batch", (3, 10, 5, 6), needs_input=False),
    "group": Case("group", (3, 12, 5, 6), groups=4),
    "group, channels last": Case("group", (3, 12, 5, 6), groups=4, **LAST),
    "group, one": Case("group", (3, 10, 7)),
    "group, one position": Case("group", (3, 24), groups=6),
    "group, odd ones, volume": Case("group", (3, 21, 3, 2, 5), groups=7, dtype=bf16),
    "group, as many as channels": Case("group", (3, 12, 5, 6), groups=12, dtype=bf16, **LAST),
    "group, small blocks, one": Case("group", (2, 20, 30), programs=60),
    "group, small blocks, many": Case("group", (2, 60, 3), groups=20, programs=1, measured=(0, 1)),
    "group, groups of two": Case("group", (5, 12, 5, 6), groups=2, dtype=fp16, group=2),
    "group, means far off": Case("group", (3, 12, 9, 11), groups=4, offset=100.0),
    "group, no input gradient": Case("group", (3, 12, 5, 6), groups=4, needs_input=False),
    "layer": Case("layer", (3, 7, 40)),
    "layer, bfloat16": Case("layer", (3, 7, 96), dtype=bf16),
    "layer, bfloat16 weight": Case("layer", (3, 7, 48), dtype=bf16, weight=bf16),
    "layer, float16": Case("layer", (3, 7, 33), dtype=fp16),
    "layer, one position": Case("layer", (6, 1, 65)),
    "layer, small blocks": Case("layer", (3, 20, 24), programs=9, measured=(1, 2)),
    "layer, small blocks, more than a row": Case("layer", (2, 5, 75), programs=1),
    "layer, small blocks, more than a row, bfloat16": Case("layer", (3, 3, 80), dtype=bf16, group=2, programs=9),
    "layer, small blocks, more than a row, no input": Case("layer", (2, 3, 80), needs_input=False, programs=1),
    "layer, groups of three and a rest": Case("layer", (7, 5, 24), group=3),
    "layer, window": Case("layer", (3, 5, 24), layout="window"),
    "layer, transposed": Case("layer", (3, 5, 24), layout="transposed"),
    "layer, expanded": Case("layer", (3, 5, 24), layout="expanded"),
    "layer, means far off": Case("layer", (3, 9, 40), offset=100.0),
    "layer, no input gradient": Case("layer", (3, 7, 40), needs_input=False),
}  # fmt: skip

NOTHING = [Case("batch", (0, 6, 5, 4), training=False), Case("group", (0, 6, 5), groups=3), Case("layer", (0, 3, 40))]

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def assert_exact(errors, case):
    assert set(errors) == set(RESULTS[0 if case.needs_input else 1 :])
    bounds = dict.fromkeys(RESULTS, BOUND[case.dtype]) | {RESULTS[0]: INPUT_BOUND[case.dtype]}
    assert all(error < bounds[name] for name, error in errors.items()), errors


@each_case
def test_twins(case):
    assert_exact(case.check(twins, "cpu"), case)


@each_case
def test_twins_in_double_precision(case):
    case = replace(case, dtype=torch.float64, weight=torch.float64)
    assert_exact(case.check(twins, "cpu"), case)


def of_nothing(functions, device):
    """Tell whether no examples have a gradient of their shape, zeros for sums, and no squares."""
    results = [(case.shape, case.result(functions, *case.operands(device))) for case in NOTHING]
    return all(
        gx.shape == shape and not scale.any() and not shift.any() and len(squares[0]) == len(squares[1]) == 0
        for shape, (gx, scale, shift, *squares) in results
    )


def test_twins_of_no_examples():
    assert of_nothing(twins, "cpu")


@pytest.fixture(scope="module")
def printed():
    return scripts.interpreted(__file__)


@gpu_code.with_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted(printed, name):
    assert_exact(printed[name], CASES[name])


@gpu_code.with_triton
def test_interpreted_of_no_examples(printed):
    assert printed["nothing"]


@pytest.mark.gpu
@gpu_code.with_triton
def test_cuda_of_no_examples():
    assert of_nothing(normalisation, "cuda")


@pytest.mark.gpu
@gpu_code.with_triton
@each_case
def test_cuda(case):
    assert_exact(case.check(normalisation, "cuda"), case)


@pytest.mark.gpu
@gpu_code.with_triton
@each_case
def test_cuda_graph(case):
    """A captured call, replayed on new inputs; two replays give the same bits."""
    operands = case.operands("cuda")
    graph = torch.cuda.CUDAGraph()
    with case.device():
        case.result(normalisation, *operands)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            result = case.result(normalisation, *operands)
    new = case.operands("cuda", seed=1)
    for tensor, value in zip(operands, new):
        if case.layout != "expanded":
            tensor.copy_(value)
    graph.replay()
    once = [None if value is None else value.clone() for value in result]
    graph.replay()
    torch.cuda.synchronize()
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(once, result))
    assert_exact(case.errors(result, *operands), case)


if __name__ == "__main__":
    assert compiling.available("cpu")
    report = {name: case.check(normalisation, "cpu") for name, case in CASES.items()}
    print(json.dumps(report | {"nothing": of_nothing(normalisation, "cpu")}))
