from pathlib import Path

import pytest
from demo import write_run
from product import run_rows, write_product

from clars.lab.tables.definition import load_table
from clars.lab.tables.overview import overview, write_overview
from clars.lab.tables.results import keep


def lines():
    rows = [line.split("|")[1:-1] for line in overview().splitlines() if "`clars table" in line]
    return [[cell.strip() for cell in row] for row in rows]


def test_what_was_not_run_says_so(demo):
    assert lines() == [["[demo](demo)", "A claim.", "lite", "not run here", "", "`clars table demo`"]]


def test_what_was_run_in_part_and_what_it_cost(demo):
    write_run(demo / "runs", "large", 0)
    keep(load_table("demo"), demo / "runs", load_table("demo").results)
    status, cost = lines()[0][3:5]
    assert status == "[in part](demo/results/v1/lite/table.md), 1 of 6 runs"
    assert cost == "0:02 on cpu: test"
    assert (demo / "recipes" / "demo/results/v1/lite/table.md").exists()


@pytest.mark.parametrize("result", [True, False])
def test_a_whole_tier_with_its_verdicts(demo, result):
    replace = {} if result else {"    seeds: [0, 1, 2, 3, 4]": "    result: false\n    seeds: [0, 1, 2, 3, 4]"}
    write_product(demo, searched=False, replace=replace | {"batches_of: {net: [64, 512]}": "batches_of: {net: [512]}"})
    table = load_table("demo")
    run_rows(table, demo / "runs", {row.name: [90.0, 80.0, 70.0, 60.0, 50.0] for row in table.rows})
    keep(table, demo / "runs", table.results)
    lite, full = lines()
    what = "reproduced here" if result else "runs, no result"
    assert lite[3] == f"[{what}](demo/results/v1/lite/table.md), 5 seeds"
    assert full == ["", "", "full", "not run here", "", "`clars table demo --tier full`"]
    sentence = "- demo: CLARS needs no warmup. CLARS minus LARS, warmup, 1 cell: the claim holds in 0"
    assert (sentence in overview()) == result


def test_the_committed_page_is_up_to_date(monkeypatch):
    recipes = Path(__file__).parents[3] / "recipes"
    monkeypatch.setenv("CLARS_RECIPES", str(recipes))
    assert (recipes / "README.md").read_text(encoding="utf-8") == overview()


def test_the_page_is_written(demo):
    assert write_overview() == demo / "recipes" / "README.md"
    assert (demo / "recipes" / "README.md").read_text() == overview()
