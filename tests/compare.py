"""What two trainings must have in common."""

import math

import pytest
from cluster import BATCH

BOUND = 1e-5


def relative(value, expected) -> float:
    """Return the norm of the difference over that of what is expected, if that is not zero."""
    return float((value.double() - expected.double()).norm() / (expected.double().norm() or 1.0))


def assert_equal(got: dict, expected: dict, bound: float = BOUND) -> None:
    """Compare the results of `cluster.train`: weights, momentum, and each step's statistics.

    Where a layer's gradients nearly cancel, the norm of their sum has lost as many digits as it is smaller than at
    other steps, by the order of summation alone; so has LARS's ratio, which is formed from it, and not CLARS's.
    """
    for kind in ("weights", "momentum"):
        assert got[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            assert relative(got[kind][name], value) < bound, (kind, name)
    peak = _peaks(expected["stats"])
    for step, (rows, wanted) in enumerate(zip(got["stats"], expected["stats"], strict=True)):
        assert rows.keys() == wanted.keys(), step
        for layer, row in wanted.items():
            lost = max(1.0, peak[layer] / row["gradient_norm"]) if row["gradient_norm"] else 1.0
            suffers = {"gradient_norm": True, "ratio": row["example_norm_sum"] is None}
            for name in ("weight_norm", "gradient_norm", "ratio", "example_norm_sum"):
                if row[name] is not None:
                    allowed = bound * (lost if suffers.get(name) else 1.0)
                    assert rows[layer][name] == pytest.approx(row[name], rel=allowed), (step, layer, name)
            if row["noise_scale"] is not None:
                assert_same_spread(rows[layer], row, 2 * bound * lost, (step, layer))


def assert_same_spread(row: dict, expected: dict, relative: float, place: tuple) -> None:
    """Compare variance factor M and noise scale B (M - 1) / (B - M), which loses digits where M is near 1 or B."""
    factor, noise = expected["variance_factor"], expected["noise_scale"]
    error = factor * relative
    assert row["variance_factor"] == pytest.approx(factor, abs=error), (*place, "variance_factor")
    if math.isfinite(noise) and min(factor - 1, BATCH - factor) > 2 * error:
        allowed = 2 * error / (factor - 1) + 2 * error / (BATCH - factor)
        assert row["noise_scale"] == pytest.approx(noise, rel=allowed), (*place, "noise_scale")


def _peaks(steps: list[dict]) -> dict[str, float]:
    """Return each layer's largest gradient norm over the steps."""
    peak: dict[str, float] = {}
    for rows in steps:
        for layer, row in rows.items():
            peak[layer] = max(peak.get(layer, 0.0), row["gradient_norm"])
    return peak
