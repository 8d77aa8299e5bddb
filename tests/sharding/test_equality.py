"""Every strategy against one process, on the same global batch: weights, momentum, ratios and S_k after ten steps."""

from functools import cache
from importlib.util import find_spec

import pytest
from cluster import Case, launch, train
from compare import assert_equal

PLAIN, ZERO = ("ddp", "fsdp2"), ("zero1", "zero2", "zero3")
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the extra [deepspeed]")


def basic(strategies):
    """Methods, accumulation and clipping, every pair of them once at least."""
    return [
        Case(strategy, method, accumulation, clip)
        for strategy in strategies
        for method, accumulation, clip in [("CLARS", 1, 0.05), ("CLARS", 4, 0.0), ("LARS", 1, 0.0), ("LARS", 4, 0.05)]
    ]


@cache
def alone(case: Case) -> dict:
    return train(case)


def check(world, folder, cases):
    for case, results in zip(cases, launch(world, folder, train, cases)):
        assert_equal(results[0], alone(case.alone()))


def test_replicas_and_fully_sharded(tmp_path):
    check(2, tmp_path, basic(PLAIN))


@needs_deepspeed
def test_zero(tmp_path):
    check(2, tmp_path, basic(ZERO))
