"""Half precision: as near to float32 as its rounding allows, steps that overflow left out, no S_k left over by them."""

from dataclasses import replace

import pytest
from cluster import Case, launch, train
from compare import assert_equal

HALF, OVERFLOWING = ("fsdp2", "zero1", "zero2", "zero3"), ("zero1", "zero2", "zero3")
AUTOCAST = ("ddp", "fsdp2", "zero2")
SLOW = {"CLARS": 0.1, "LARS": 0.1, "LAMB": 0.001}  # so that rounding does not grow from step to step
pytestmark = pytest.mark.deepspeed


MOMENTUM, LAMB = (("CLARS", 0.0), ("LARS", 0.05)), (("LAMB", 0.05),)


def cases(strategies, precision, methods=MOMENTUM):
    return [
        Case(strategy, method, 2, clip, precision=precision, options={"lr": SLOW[method]})
        for strategy in strategies
        for method, clip in methods
    ]


def test_bfloat16(tmp_path):
    """A unit of rounding is 4e-3. The momentum holds gradients, which cancel more than they are rounded.

    LAMB divides by their size, so small ones weigh as much. DeepSpeed has another engine for ZeRO-1 with bfloat16.
    """
    both = cases(HALF, "bfloat16") + cases(AUTOCAST, "autocast") + cases(["zero1"], "bfloat16", LAMB)
    for case, results in zip(both, launch(2, tmp_path, train, both)):
        assert_equal(results[0], train(case.alone()), 0.1 if case.method == "LAMB" else 3e-2)


def test_float16_with_a_dynamic_loss_scale(tmp_path):
    """The scale starts too large, doubles after every second step, and so overflows again in the midst of it.

    A step that is left out leaves LAMB's averages alone, and is not counted.
    """
    scaled = cases(OVERFLOWING, "float16", MOMENTUM + LAMB)
    for case, results in zip(scaled, launch(2, tmp_path, train, scaled)):
        skipped = frozenset(step for step, row in enumerate(results[0]["stats"]) if not row)
        assert skipped == {0, 1, 2, 3, 4, 8}
        assert_equal(results[0], train(replace(case.alone(), skipped=skipped)), 2e-2)
