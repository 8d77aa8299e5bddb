import math
from itertools import pairwise

import pytest

from clars.lab.recipes.schema import Schedule
from clars.lab.training.schedule import rate_factor


def factors(scaling=8.0, steps=40, per_epoch=4, **settings):
    schedule = Schedule(base_rate=1.0, base_batch=64, **settings)
    return [rate_factor(schedule, step, steps, per_epoch, scaling) for step in range(steps)]


def test_polynomial():
    assert factors(power=2) == pytest.approx([(1 - t / 40) ** 2 for t in range(40)])


def test_cosine():
    assert factors(name="cosine") == pytest.approx([(1 + math.cos(math.pi * t / 40)) / 2 for t in range(40)])


def test_constant():
    assert factors(name="constant") == [1.0] * 40


@pytest.mark.parametrize("name", ["polynomial", "cosine", "constant"])
def test_warmup_rises_from_the_base_rate_to_the_peak(name):
    got = factors(name=name, warmup_epochs=5)
    assert got[0] == 1 / 8 and got[20] == 1.0
    rises = [b - a for a, b in pairwise(got[:21])]
    assert rises == pytest.approx([(1 - 1 / 8) / 20] * 20)
    assert got[20:] == pytest.approx(factors(name=name, steps=20))


def test_warmup_at_the_base_batch_changes_nothing_before_the_decay():
    assert factors(scaling=1.0, warmup_epochs=2)[:9] == [1.0] * 9


@pytest.mark.parametrize("scaling", [1.0, 8.0])
def test_warmup_from_zero_rises_evenly_whatever_the_scaling(scaling):
    got = factors(scaling=scaling, warmup_epochs=5, warmup_from="zero")
    assert got[:21] == pytest.approx([(step + 1) / 20 for step in range(20)] + [1.0])
    assert got[20:] == pytest.approx(factors(steps=20))


def test_the_peak_rate_by_each_way_of_scaling():
    peaks = {
        scaling: Schedule(base_rate=0.1, base_batch=64, scaling=scaling).peak_rate(1024)
        for scaling in ("linear", "sqrt", "none")
    }
    assert peaks == pytest.approx({"linear": 1.6, "sqrt": 0.4, "none": 0.1})
    assert Schedule(base_rate=0.1, base_batch=64).peak_rate(128) == 0.2


def test_the_last_rate_is_not_zero():
    assert all(factor > 0 for factor in factors(warmup_epochs=9.9))
