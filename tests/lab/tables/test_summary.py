import math
import statistics

import pytest
from demo import LARGE, write, write_run, write_run_into
from scipy import stats

from clars.lab.recipes.load import load
from clars.lab.tables.definition import load_table
from clars.lab.tables.summary import SkippedRecord, interval, summarise


def large_row(out):
    return summarise(load_table("demo"), out)[1]


@pytest.mark.parametrize("values", [[98.0, 97.0], [90.0, 91.5, 89.25], [97.1, 97.9, 98.3, 96.8, 97.7]])
def test_the_interval_is_that_of_scipy(values):
    low, high = stats.t.interval(0.95, len(values) - 1, loc=statistics.fmean(values), scale=stats.sem(values))
    assert interval(values) == pytest.approx((high - low) / 2)


def test_numbers_worked_out_by_hand(demo, tmp_path):
    """Mean 92, deviations -2, 0, 2: variance 8 / 2; t with 2 degrees of freedom is 4.302653."""
    for seed, top1 in enumerate((90.0, 92.0, 94.0)):
        write_run(tmp_path, "large", seed, top1)
    row = large_row(tmp_path)
    assert (row.n, row.mean, row.sd, row.diverged, row.status) == (3, 92.0, 2.0, 0, "run")
    assert row.half_width == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)
    assert (row.label, row.batch, row.warmup_epochs, row.peak_rate) == ("CLARS", 512, 1.0, 16.0)
    assert row.evidence == tuple(tmp_path / "large" / f"seed{seed}" / "run.json" for seed in range(3))


def test_a_row_without_records_is_not_run(demo, tmp_path):
    row = large_row(tmp_path)
    assert (row.n, row.mean, row.sd, row.half_width, row.evidence) == (0, None, None, None, ())
    assert row.status == "not run"


def test_one_seed_has_no_spread(demo, tmp_path):
    write_run(tmp_path, "large", 0, 91.0)
    row = large_row(tmp_path)
    assert (row.n, row.mean, row.sd, row.half_width) == (1, 91.0, None, None)


def test_diverged_runs_are_counted_but_not_averaged(demo, tmp_path):
    write_run(tmp_path, "large", 0, 90.0)
    write_run(tmp_path, "large", 1, 10.0, status="diverged")
    row = large_row(tmp_path)
    assert (row.n, row.mean, row.diverged, len(row.evidence)) == (1, 90.0, 1, 2)


def test_a_row_of_diverged_runs_only(demo, tmp_path):
    final = {"top1": None, "top5": None, "loss": None}
    write_run(tmp_path, "large", 0, status="diverged", final=final, epochs=0)
    row = large_row(tmp_path)
    assert (row.n, row.mean, row.diverged, row.status) == (0, None, 1, "diverged")


def test_interrupted_runs_do_not_count(demo, tmp_path):
    write_run(tmp_path, "large", 0, status="interrupted")
    assert large_row(tmp_path).status == "not run"


def test_the_accuracy_is_the_last_one_not_the_best(demo, tmp_path):
    write_run(tmp_path, "large", 0, 90.0, course=[99.0, 80.0, 90.0])
    assert large_row(tmp_path).mean == 90.0


def test_a_recipe_changed_since_is_not_counted(demo, tmp_path):
    write_run(tmp_path, "large", 0)
    write(demo / "recipes", large=LARGE + "# changed\n")
    with pytest.warns(SkippedRecord, match=r"seed0/run\.json is not counted: .*large\.yaml has changed since"):
        row = large_row(tmp_path)
    assert row.status == "not run"


def test_a_run_with_overrides_is_not_counted(demo, tmp_path):
    write_run(tmp_path, "large", 0, 90.0)
    write_run_into(tmp_path / "large" / "seed1", load("demo/large", ["epochs=9"]), 1, 99.0)
    with pytest.warns(SkippedRecord, match=r"seed1.*overrides epochs=9"):
        row = large_row(tmp_path)
    assert (row.n, row.mean) == (1, 90.0)


def test_a_run_of_another_recipe_is_not_counted(demo, tmp_path):
    write_run_into(tmp_path / "large" / "seed0", load("demo/small"))
    with pytest.warns(SkippedRecord, match="it is a run of demo/small@v1"):
        assert large_row(tmp_path).status == "not run"
