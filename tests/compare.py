"""What two trainings must have in common."""

import pytest

BOUND = 1e-5


def relative(value, expected) -> float:
    """Return the norm of the difference over that of what is expected, if that is not zero."""
    return float((value.double() - expected.double()).norm() / (expected.double().norm() or 1.0))


def assert_equal(got: dict, expected: dict, bound: float = BOUND) -> None:
    """Compare the results of `cluster.train`: weights, momentum, and each step's statistics."""
    for kind in ("weights", "momentum"):
        assert got[kind].keys() == expected[kind].keys()
        for name, value in expected[kind].items():
            assert relative(got[kind][name], value) < bound, (kind, name)
    for step, (rows, wanted) in enumerate(zip(got["stats"], expected["stats"], strict=True)):
        assert rows.keys() == wanted.keys(), step
        for layer, row in wanted.items():
            for name in ("weight_norm", "gradient_norm", "ratio", "example_norm_sum"):
                if row[name] is not None:
                    assert rows[layer][name] == pytest.approx(row[name], rel=bound), (step, layer, name)
