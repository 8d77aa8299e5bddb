"""What is told of a layer, and of what it is not told."""

import pytest

from clars.optim.stats import LayerStats


@pytest.mark.parametrize(
    "gradient, total, unmeasured",
    [
        (1.0, [0.9, 0.5, 4.0, 4.0], True),
        (1.0, [0.99, 0.5, 4.0, 4.0], False),  # rounding
        (1.0, None, False),
        (1e-17, [0.0, 0.0, 4.0, 4.0], False),  # the examples' norms are there, and their squares below float32's range
    ],
)
def test_a_gradient_that_was_measured_in_part(gradient, total, unmeasured):
    assert LayerStats.of(1.0, gradient, 1.0, total).unmeasured is unmeasured


def test_variance_and_noise():
    """Two examples with gradients 1 and 3, each with half of the weight: M = 5 / 4, tr = 2, ||G||^2 = 3."""
    stats = LayerStats.of(1.0, 2.0, 1.0, [0.5 + 1.5, 0.25 + 2.25, 2.0, 2.0])
    assert stats.variance_factor == pytest.approx(5 / 4)
    assert stats.noise_scale == pytest.approx(2 / 3)
