"""The fused kernel against each example's own weight gradient in double precision."""

from contextlib import nullcontext

import gpu_code
import pytest
import torch
from convolutions import Case, check_on_cuda, on_one_processor, print_errors
from scripts import interpreted

from clars.native.triton import compiling
from clars.native.triton import fused_products as fused

CASES = {
    "1x1": Case((3, 20, 6, 6), 33, (1, 1)),
    "linear": Case((5, 40, 1, 1), 24, (1, 1)),
    "linear with positions": Case((3, 24, 17, 1), 18, (1, 1), layout="features last"),
    "3x3": Case((3, 10, 8, 8), 20, (3, 3), padding=(1, 1)),
    "stride": Case((3, 10, 9, 9), 20, (3, 3), (2, 2), (1, 1)),
    "unequal strides": Case((2, 5, 9, 8), 4, (2, 3), (3, 2), (1, 0)),
    "dilation": Case((3, 10, 9, 9), 20, (3, 3), (1, 1), (2, 2), (2, 2)),
    "unequal padding": Case((3, 7, 6, 8), 9, (3, 5), padding=(1, 2)),
    "not square": Case((2, 6, 5, 11), 70, (1, 4), (1, 2), (0, 1), (1, 2)),
    "groups": Case((3, 12, 6, 6), 10, (3, 3), padding=(1, 1), groups=2),
    "depthwise": Case((2, 4, 5, 6), 4, (3, 3), padding=(1, 1), groups=4),
    "depthwise, two outputs each": Case((2, 4, 6, 5), 8, (3, 3), (2, 1), (1, 1), groups=4, layout="channels last"),
    "channels last": Case((3, 16, 7, 6), 32, (3, 3), padding=(1, 1), layout="channels last"),
    "channels last, groups, stride": Case((3, 12, 7, 6), 8, (3, 3), (2, 2), (1, 1), groups=2, layout="channels last"),
    "window": Case((3, 7, 6, 5), 18, (3, 3), padding=(1, 1), layout="window"),
    "batch inside": Case((3, 7, 6, 5), 18, (3, 3), padding=(1, 1), layout="batch inside"),
    "many tiles": Case((1, 9, 4, 5), 130, (3, 3), padding=(1, 1)),
    "one program": Case((5, 6, 6, 7), 8, (3, 3), padding=(1, 1), programs=1),
    "uneven split": Case((7, 6, 6, 7), 8, (3, 3), padding=(1, 1), programs=3),
    "uneven split, groups": Case((7, 6, 6, 7), 8, (3, 3), padding=(1, 1), groups=2, programs=6),
    "groups of two": Case((6, 7, 6, 8), 9, (3, 3), padding=(1, 1), group=2, programs=2),
    "groups of three and a rest": Case((8, 7, 6, 8), 9, (3, 3), (2, 1), (1, 1), groups=1, group=3, programs=8),
    "one group": Case((5, 6, 6, 7), 8, (3, 3), padding=(1, 1), groups=2, group=5, programs=4),
    "bfloat16, groups of four": Case(
        (9, 16, 7, 7), 48, (3, 3), (2, 2), (1, 1), dtype=torch.bfloat16, layout="channels last", group=4, programs=6
    ),
    "bfloat16, features last": Case(
        (3, 64, 50, 1), 80, (1, 1), dtype=torch.bfloat16, layout="features last", group=2, programs=2
    ),
    "bfloat16, one tap a tile": Case(
        (2, 64, 4, 5), 16, (3, 3), (1, 2), (1, 1), dtype=torch.bfloat16, layout="channels last", programs=2
    ),
    "bfloat16, tiles twice as wide": Case((2, 256, 3, 3), 128, (1, 1), dtype=torch.bfloat16, layout="channels last"),
    "bfloat16": Case((3, 20, 9, 7), 33, (3, 3), padding=(1, 1), dtype=torch.bfloat16),
    "bfloat16, channels last": Case(
        (4, 32, 7, 7), 48, (3, 3), (2, 2), (1, 1), dtype=torch.bfloat16, layout="channels last", programs=6
    ),
    "bfloat16, wide tiles": Case((5, 128, 6, 7), 256, (1, 1), dtype=torch.bfloat16, layout="channels last", programs=4),
    "bfloat16, window": Case((3, 16, 6, 5), 32, (3, 3), padding=(1, 1), dtype=torch.bfloat16, layout="window"),
    "float16": Case((3, 20, 9, 7), 33, (3, 3), padding=(1, 1), dtype=torch.float16),
}


COMPILED = {
    "1x1": Case((1, 256, 14, 14), 1024, (1, 1), dtype=torch.bfloat16, layout="channels last"),
    "3x3, one tap a tile": Case(
        (1, 128, 28, 28), 128, (3, 3), (1, 1), (1, 1), dtype=torch.bfloat16, layout="channels last"
    ),
    "float32": Case((1, 128, 14, 14), 128, (3, 3), (1, 1), (1, 1)),
}
COMPILED_SLOWLY = {
    "3x3, several taps a tile": Case(
        (1, 96, 14, 14), 96, (3, 3), (1, 1), (1, 1), dtype=torch.bfloat16, layout="channels last"
    ),
    "3x3, nchw": Case((1, 128, 14, 14), 128, (3, 3), (1, 1), (1, 1), dtype=torch.bfloat16),
    "1x1, stride 2": Case((1, 256, 14, 14), 512, (1, 1), (2, 2), dtype=torch.float16, layout="channels last"),
    "7x7": Case((1, 3, 32, 32), 64, (7, 7), (2, 2), (3, 3), dtype=torch.bfloat16, layout="channels last"),
    "linear": Case((1, 384, 197, 1), 1536, (1, 1), dtype=torch.bfloat16, layout="features last"),
    "linear, float32": Case((1, 384, 197, 1), 1536, (1, 1), layout="features last"),
    "3x3, window": Case((1, 128, 14, 14), 128, (3, 3), (1, 1), (1, 1), dtype=torch.bfloat16, layout="window"),
}


def results(case, gy, x):
    arguments = (gy, x, *case.geometry, case.groups, case.group)
    with on_one_processor(fused, "PROGRAMS_PER_PROCESSOR", case.programs) if case.programs else nullcontext():
        gradient, squares = fused.fused_products(*arguments)
        return {"gradient": gradient, "squares": squares, "squares alone": fused.fused_squares(*arguments)}


@pytest.fixture(scope="module")
def printed():
    return interpreted(__file__)


@gpu_code.with_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted(printed, name):
    CASES[name].assert_exact(printed["errors"][name])


@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
@gpu_code.each_compiled(COMPILED, COMPILED_SLOWLY)
def test_registers_suffice(case, architecture):
    launches = gpu_code.launches(lambda: results(case, *case.operands("cpu")))
    assert len(launches) == 2
    assert all(gpu_code.resources(launch, architecture).spilled <= gpu_code.FEW for launch in launches)


def test_unavailable_on_a_processor(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not compiling.available("cpu")


def test_unavailable_without_triton(monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    compiling._installed.cache_clear()
    assert not compiling.available("cuda")
    compiling._installed.cache_clear()


@pytest.mark.gpu
@gpu_code.with_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_cuda(case):
    assert compiling.available("cuda")
    check_on_cuda(case, results)


if __name__ == "__main__":
    assert compiling.available("cpu")
    print_errors(CASES, results)
