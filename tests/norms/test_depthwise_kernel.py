"""The depthwise kernels against each example's own weight gradient in double precision."""

from contextlib import nullcontext

import gpu_code
import pytest
import torch
from convolutions import Case, check_on_cuda, on_one_processor, print_errors
from scripts import interpreted

from clars.native.triton import depthwise


def of(channels, size, kernel, *args, examples=3, **kwargs):
    return Case((examples, channels, *size), channels, kernel, *args, groups=channels, **kwargs)


bf16 = torch.bfloat16
CASES = {
    "3x3": of(6, (5, 6), (3, 3), padding=(1, 1)),
    "3x3, channels last": of(16, (5, 4), (3, 3), padding=(1, 1), layout="channels last"),
    "3x3, unpadded": of(6, (5, 6), (3, 3)),
    "one channel": of(1, (5, 6), (3, 3), padding=(1, 1)),
    "one tap": of(5, (3, 4), (1, 1)),
    "several blocks": of(70, (3, 4), (3, 3), padding=(1, 1), layout="channels last"),
    "7x7": of(6, (4, 5), (7, 7), padding=(3, 3), layout="channels last"),
    "stride": of(6, (9, 8), (3, 3), (2, 2), (1, 1)),
    "unequal strides": of(5, (9, 8), (2, 3), (3, 2), (1, 0)),
    "dilation": of(6, (5, 4), (3, 3), (1, 1), (2, 2), (2, 2)),
    "one dimension": of(6, (1, 20), (1, 5), padding=(0, 2)),
    "window": of(7, (4, 5), (3, 3), padding=(1, 1), layout="window"),
    "batch inside": of(7, (4, 5), (3, 3), padding=(1, 1), layout="batch inside"),
    "one part": of(6, (4, 5), (3, 3), padding=(1, 1), programs=1),
    "some parts": of(6, (4, 5), (3, 3), padding=(1, 1), programs=8),
    "groups of two": of(6, (4, 5), (3, 3), padding=(1, 1), examples=6, group=2, programs=6),
    "groups of three and a rest": of(6, (4, 5), (3, 3), (2, 1), (1, 1), examples=8, group=3, programs=9),
    "one group": of(6, (4, 5), (3, 3), padding=(1, 1), examples=5, group=7, programs=4),
    "many examples": of(3, (1, 2), (1, 2), padding=(0, 1), examples=40, programs=1),
    "bfloat16": of(6, (5, 6), (3, 3), padding=(1, 1), dtype=bf16),
    "bfloat16, channels last": of(16, (5, 4), (5, 5), (2, 2), (2, 2), dtype=bf16, layout="channels last", group=2),
    "float16, channels last": of(16, (5, 4), (3, 3), padding=(1, 1), dtype=torch.float16, layout="channels last"),
}
COMPILED = {"7x7": of(96, (14, 14), (7, 7), padding=(3, 3), dtype=bf16, layout="channels last")}
COMPILED_SLOWLY = {
    "3x3": of(96, (14, 14), (3, 3), padding=(1, 1), dtype=bf16, layout="channels last"),
    "3x3, few channels": of(12, (14, 14), (3, 3), padding=(1, 1), dtype=torch.float16),
    "5x5, float32": of(96, (14, 14), (5, 5), (2, 2), (2, 2)),
    "7x7, float32": of(96, (14, 14), (7, 7), padding=(3, 3)),
    "8x8, unaligned": of(97, (14, 14), (8, 8), dtype=bf16, layout="window"),
}


def results(case, gy, x):
    with on_one_processor(depthwise, "WARPS_PER_PROCESSOR", case.programs) if case.programs else nullcontext():
        gradient, squares = depthwise.depthwise_products(gy, x, *case.geometry, case.group)
    return {"gradient": gradient, "squares": squares}


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


@pytest.mark.gpu
@gpu_code.with_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_cuda(case):
    check_on_cuda(case, results)


if __name__ == "__main__":
    print_errors(CASES, results)
