import pytest

from clars.lab.tables.figures.rates import _curve, _gain


def test_a_curve_has_the_mean_and_the_range_of_the_seeds():
    curve = _curve("CLARS", {}, {4.0: [80.0, 90.0], 2.0: [70.0]})
    assert (curve.x, curve.y, curve.band) == ([2.0, 4.0], [70.0, 85.0], ([70.0, 80.0], [70.0, 90.0]))


@pytest.mark.parametrize("chance, rates", [(10.0, [0.5, 1.0, 2.0]), (None, [0.5, 1.0, 2.0, 4.0])])
def test_what_warmup_gains_is_shown_where_either_learns(chance, rates):
    """Where both fail the difference is 0, which is not that warmup changes nothing. The best rate is 2."""
    plain = {1.0: [70.0], 2.0: [80.0], 4.0: [10.0], 8.0: [10.0]}
    warm = {1.0: [71.0], 2.0: [79.0], 4.0: [60.0], 8.0: [10.0], 16.0: [10.0]}
    assert _gain(plain, warm, chance) == (rates, [1.0, -1.0, 50.0, 0.0][: len(rates)])
