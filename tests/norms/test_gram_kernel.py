"""The gram kernel against each example's own weight gradient in double precision."""

import gpu_code
import pytest
import torch
from convolutions import Case, check_on_cuda, print_errors
from scripts import interpreted

from clars.native.triton import gram

bf16 = torch.bfloat16
CASES = {
    "1x1": Case((3, 20, 6, 6), 33, (1, 1)),
    "linear": Case((5, 40, 1, 1), 24, (1, 1)),
    "linear with positions": Case((3, 24, 17, 1), 18, (1, 1), layout="features last"),
    "3x3": Case((3, 10, 7, 7), 20, (3, 3), padding=(1, 1)),
    "3x3, unpadded": Case((3, 10, 7, 7), 20, (3, 3)),
    "stride": Case((3, 10, 9, 9), 20, (3, 3), (2, 2), (1, 1)),
    "1x1, stride": Case((3, 10, 9, 8), 20, (1, 1), (2, 3)),
    "1x1, padded": Case((3, 10, 5, 4), 20, (1, 1), padding=(1, 2)),
    "unequal strides": Case((2, 5, 9, 8), 4, (2, 3), (3, 2), (1, 0)),
    "dilation": Case((2, 10, 8, 7), 20, (3, 3), (1, 1), (2, 2), (2, 2)),
    "not square": Case((2, 6, 5, 11), 70, (1, 4), (1, 2), (0, 1), (1, 2)),
    "one dimension": Case((3, 6, 1, 20), 9, (1, 5), padding=(0, 2)),
    "two blocks": Case((1, 20, 9, 9), 33, (3, 3), padding=(1, 1)),
    "three blocks": Case((1, 20, 13, 13), 33, (1, 1)),
    "five blocks": Case((1, 6, 300, 1), 8, (1, 1), layout="features last"),
    "channels last": Case((3, 40, 7, 6), 32, (3, 3), padding=(1, 1), layout="channels last"),
    "window": Case((3, 7, 6, 5), 18, (3, 3), padding=(1, 1), layout="window"),
    "batch inside": Case((3, 7, 6, 5), 18, (3, 3), padding=(1, 1), layout="batch inside"),
    "groups of two": Case((6, 7, 6, 4), 9, (3, 3), padding=(1, 1), group=2),
    "groups of three and a rest": Case((8, 7, 6, 7), 9, (3, 3), (2, 1), (1, 1), group=3),
    "one group": Case((5, 6, 4, 3), 8, (3, 3), padding=(1, 1), group=8),
    "linear, groups of four and a rest": Case((11, 20, 9, 1), 33, (1, 1), layout="features last", group=4),
    "bfloat16": Case((3, 20, 9, 7), 33, (3, 3), padding=(1, 1), dtype=bf16),
    "bfloat16, channels last": Case((2, 80, 7, 7), 96, (3, 3), padding=(1, 1), dtype=bf16, layout="channels last"),
    "bfloat16, wide blocks": Case((1, 16, 14, 14), 48, (3, 3), (1, 1), (1, 1), dtype=bf16, layout="channels last"),
    "bfloat16, wide blocks, groups": Case((7, 32, 80, 1), 48, (1, 1), dtype=bf16, layout="features last", group=3),
    "bfloat16, window": Case((3, 16, 6, 5), 32, (3, 3), padding=(1, 1), dtype=bf16, layout="window"),
    "float16": Case((3, 20, 9, 7), 33, (3, 3), padding=(1, 1), dtype=torch.float16),
    "float16, channels last": Case((3, 16, 9, 7), 32, (1, 1), dtype=torch.float16, layout="channels last"),
}
COMPILED = {
    "7x7": Case((1, 64, 7, 7), 128, (3, 3), padding=(1, 1), dtype=bf16, layout="channels last"),
    "14x14": Case((1, 64, 14, 14), 128, (3, 3), padding=(1, 1), dtype=bf16, layout="channels last"),
    "float32": Case((1, 64, 14, 14), 128, (3, 3), padding=(1, 1), layout="channels last"),
}
COMPILED_SLOWLY = {
    "14x14, unaligned": Case((1, 65, 14, 14), 129, (3, 3), padding=(1, 1), dtype=bf16),
    "14x14, float32, unaligned": Case((1, 65, 14, 14), 129, (3, 3), padding=(1, 1)),
    "linear": Case((1, 384, 197, 1), 1536, (1, 1), dtype=bf16, layout="features last"),
    "linear, float32": Case((1, 384, 197, 1), 1536, (1, 1), layout="features last"),
    "linear, no positions": Case((1, 2048, 1, 1), 1000, (1, 1), dtype=bf16),
    "linear, no positions, groups": Case((8, 2048, 1, 1), 1000, (1, 1), dtype=torch.float16, group=8),
}


def results(case, gy, x):
    return {"squares": gram.gram_squares(gy, x, *case.geometry, case.group)}


def extremes(device):
    """Return the squares of examples whose gradients are nothing but rounding, in one block and in several."""
    found = {}
    for name, half in {"one block": 20, "several blocks": 100}.items():
        generator = torch.Generator().manual_seed(0)
        gy, x = (torch.randn(20, 8, half, 1, generator=generator) for _ in range(2))
        gy, x = torch.cat([gy, -gy], 2).to(device), torch.cat([x, x], 2).to(device)
        gy[-1, 0, 0] = torch.nan
        found[name] = gram.gram_squares(gy, x, (1, 1), (1, 1), (0, 0), (1, 1)).tolist()
    return found


@pytest.fixture(scope="module")
def printed():
    return interpreted(__file__)


@gpu_code.with_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted(printed, name):
    CASES[name].assert_exact(printed["errors"][name])


def assert_extremes(found):
    for squares in found.values():
        assert len(squares) == 20 and squares[-1] != squares[-1]
        assert all(0 <= square < 0.1 for square in squares[:-1])


@gpu_code.with_triton
def test_never_negative_and_nan_stays(printed):
    assert_extremes(printed["extremes"])


@pytest.fixture(params=["ieee", pytest.param("tf32", marks=pytest.mark.slow)])
def precision(request):
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = request.param == "tf32"
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("architecture", gpu_code.ARCHITECTURES)
@gpu_code.each_compiled(COMPILED, COMPILED_SLOWLY)
def test_registers_suffice(case, precision, architecture):
    (launch,) = gpu_code.launches(lambda: results(case, *case.operands("cpu")))
    assert launch.constants["PRECISION"] == (precision if case.dtype == torch.float32 else "ieee")
    assert gpu_code.resources(launch, architecture).spilled <= gpu_code.FEW


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has the older setting alone"
)
def test_precision_by_the_newer_setting():
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        for chosen in ("tf32", "ieee"):
            settings.fp32_precision = chosen
            assert gram._precision(torch.zeros(1)) == chosen
            assert gram._precision(torch.zeros(1, dtype=bf16)) == "ieee"
    finally:
        settings.fp32_precision = before


@pytest.mark.gpu
@gpu_code.with_triton
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_cuda(case):
    check_on_cuda(case, results)


@pytest.mark.gpu
@gpu_code.with_triton
def test_never_negative_and_nan_stays_on_cuda():
    assert_extremes(extremes("cuda"))


if __name__ == "__main__":
    print_errors(CASES, results, extremes=extremes("cpu"))
