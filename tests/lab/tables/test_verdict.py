import math

import pytest
from product import run_rows, write_product

from clars.lab.tables.definition import load_table
from clars.lab.tables.verdict import FAILS, HOLDS, OPEN, Cell, judge


@pytest.fixture
def table(demo):
    """The product, without a search: every row has the rate of its recipe."""
    write_product(demo, searched=False)
    return load_table("demo")


def test_differences_are_of_the_same_seed(table, tmp_path):
    """Differences 1, 2, 3, 2, 2: mean 2, variance 2 / 4; t with 4 degrees of freedom is 2.776445."""
    accuracies = {
        "net/clars-512": [91.0, 82.0, 73.0, 64.0, 55.0],
        "net/lars-warmup-512": [90.0, 80.0, 70.0, 62.0, 53.0],
    }
    run_rows(table, tmp_path, accuracies)
    (judgement,) = judge(table, tmp_path)
    small, large = judgement.cells
    assert (small.n, small.verdict) == (0, OPEN)
    assert (large.network, large.batch, large.n, large.mean, large.verdict) == ("net", 512, 5, 2.0, HOLDS)
    assert large.half_width == pytest.approx(2.776445 * math.sqrt(0.5 / 5), rel=1e-6)
    assert judgement.sentence == (
        "CLARS minus LARS, warmup, 2 cells: the claim holds in 1, does not hold in 0, not decided in 1."
    )


def test_a_seed_without_its_counterpart_is_no_pair(table, tmp_path):
    run_rows(table, tmp_path, {"net/clars-64": [90.0] * 5, "net/lars-warmup-64": [80.0] * 4})
    cell = judge(table, tmp_path)[0].cells[0]
    assert (cell.n, cell.mean, cell.half_width, cell.verdict) == (4, 10.0, 0.0, OPEN)


def test_a_diverged_run_enters_with_what_it_ended_with(table, tmp_path):
    run_rows(table, tmp_path, {"net/clars-64": [90.0]})
    final = {"top1": None, "top5": None, "loss": None}
    run_rows(table, tmp_path, {"net/lars-warmup-64": [3.0]}, status="diverged")
    assert judge(table, tmp_path)[0].cells[0].mean == 87.0
    run_rows(table, tmp_path, {"net/lars-warmup-64": [3.0]}, status="diverged", final=final, epochs=0)
    assert judge(table, tmp_path)[0].cells[0].mean == 90.0


@pytest.mark.parametrize(
    "n, mean, half_width, verdict",
    [
        (5, 1.0, 0.9, HOLDS),
        (5, -1.0, 0.9, FAILS),
        (5, 1.0, 1.0, OPEN),
        (5, 0.0, 0.0, OPEN),
        (4, 9.0, 0.1, OPEN),
        (1, 9.0, None, OPEN),
        (0, None, None, OPEN),
    ],
)
def test_the_rule(n, mean, half_width, verdict):
    assert Cell("net", 64, False, n, mean, half_width).verdict == verdict


def test_batches_are_those_of_the_comparison(demo, tmp_path):
    write_product(demo, replace={"second: lars-warmup,": "second: lars-warmup, batches: [512],"})
    assert [cell.batch for cell in judge(load_table("demo"), tmp_path)[0].cells] == [512]


def test_a_tier_without_result_is_not_judged(demo, tmp_path):
    write_product(demo, replace={"    seeds: [0, 1, 2, 3, 4]": "    result: false\n    seeds: [0, 1, 2, 3, 4]"})
    assert judge(load_table("demo"), tmp_path) == []
