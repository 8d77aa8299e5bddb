"""What two trainings must have in common."""

import pytest

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


def _peaks(steps: list[dict]) -> dict[str, float]:
    """Return each layer's largest gradient norm over the steps."""
    peak: dict[str, float] = {}
    for rows in steps:
        for layer, row in rows.items():
            peak[layer] = max(peak.get(layer, 0.0), row["gradient_norm"])
    return peak
