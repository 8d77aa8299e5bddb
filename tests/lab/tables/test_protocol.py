"""Tables with a search for every row, several ways of scaling, void cells and corrected comparisons."""

import json

import pytest
from demo import write, write_run_into
from product import run_rows
from scipy import stats

from clars.errors import RecipeError
from clars.lab.cli import main
from clars.lab.tables import search, verdict
from clars.lab.tables.definition import load_table
from clars.lab.tables.figures import first_epoch
from clars.lab.tables.overview import overview
from clars.lab.tables.results import generate
from clars.lab.tables.search import candidates, extended, summarise

NET = """\
description: A small network
model: {name: resnet8, arguments: {width: 4}}
data: {name: digits, image_size: 8, channels: 1, hold_out: true}
optimizer: {name: sgd, weight_decay: 5e-4}
schedule: {base_rate: 1, base_batch: 64, scaling: none}
batch_size: 64
epochs: 3
"""
TABLE = """\
title: A table
claim: A claim.
chance: 10
figures: [accuracy-by-rate, warmup-gain, accuracy-by-batch, first-epoch]
comparisons:
  - {first: clars, second: lars, primary: true, claim: "One."}
  - {first: clars, second: lars, rates: linear, second_rates: sqrt, batches: [512], primary: true, claim: "Two."}
  - {first: lars-warmup, second: lars, claim: "Three."}
tiers:
  lite:
    seeds: [0, 1, 2, 3, 4]
    product:
      recipes: [net]
      methods:
        clars: {label: CLARS, set: {optimizer.name: clars}}
        lars: {label: LARS, set: {optimizer.name: lars}}
        lars-warmup: {label: "LARS, warmup", warmup_of: lars, set: {optimizer.name: lars, schedule.warmup_epochs: 1}}
      batches: [64, 512]
      rates: [linear, sqrt, tuned]
      scaled: [clars, lars]
    search:
      grid: {clars: [1, 2, 4], lars: [1, 2, 4], lars-warmup: [1, 2, 4]}
      seeds: [100, 101]
      scaling: sqrt
      extend: true
"""


@pytest.fixture
def table(demo):
    write(demo / "recipes", net=NET, table=TABLE)
    return load_table("demo")


def run_search(found, best, spread=1.0, **changes):
    """Write a run of every job: accuracy falls by 10 points for every factor of 2 from the best rate."""
    from math import log2

    for one in found:
        for rate, jobs in one.jobs.items():
            for number, job in enumerate(jobs):
                top1 = max(0.0, 90 - 10 * abs(log2(rate / best)) + spread * number)
                write_run_into(job.folder, job.resolved, job.seed, top1, **changes)


def test_the_rows_of_each_way_to_a_rate(table):
    rows = {row.name: row for row in table.rows}
    assert list(rows) == [
        *("net/clars-64", "net/clars-512-linear", "net/clars-512-sqrt", "net/clars-512-tuned"),
        *("net/lars-64", "net/lars-512-linear", "net/lars-512-sqrt", "net/lars-512-tuned"),
        "net/lars-warmup-512-tuned",
    ]
    assert rows["net/clars-512-sqrt"].label == "CLARS, sqrt"
    peaks = [rows[f"net/clars-512-{rates}"].resolved.peak_rate for rates in ("linear", "sqrt", "tuned")]
    assert peaks == pytest.approx([8, 8**0.5, 1])
    sources = {name: row.plan.source.key for name, row in rows.items()}
    assert sources["net/clars-512-linear"] == sources["net/clars-64"] == "net/clars-64"
    assert sources["net/clars-512-tuned"] == "net/clars-512"
    assert sources["net/lars-warmup-512-tuned"] == "net/lars-warmup-512"


def test_rates_at_another_batch_are_tried_times_a_power_of_two(table, tmp_path):
    """The root of 512 / 64 is 2.83, to which 4 is nearest among powers of two, as its logarithm is rounded."""
    tried = {one.key: list(one.jobs) for one in candidates(table, tmp_path)}
    assert (tried["net/clars-64"], tried["net/clars-512"]) == ([1, 2, 4], [4, 8, 16])


@pytest.mark.parametrize("best, wanted", [(0.25, [0.125, 0.25, 0.5, 1, 2, 4]), (8, [1, 2, 4, 8, 16]), (2, [1, 2, 4])])
def test_a_grid_goes_on_while_its_best_lies_at_an_end(table, tmp_path, best, wanted):
    found = candidates(table, tmp_path)[:1]
    assert [list(one.jobs) for one in extended(found, 10)] == [[1, 2, 4]]  # nothing was run
    for _ in range(10):
        run_search(found, best)
        before, found = found, extended(found, 10)
    assert list(found[0].jobs) == list(before[0].jobs) == wanted
    (method,) = summarise(found, "demo", "v1", 10)["methods"].values()
    assert (method["winner"], method["at_edge"]) == (best, False)


def test_a_rate_beyond_the_grid_is_round(table, tmp_path):
    """0.8 * 0.8 / 0.4 is 1.6000000000000003."""
    one = candidates(table, tmp_path)[0]
    found = [search.candidate(one.key, one.resolved, [0.2, 0.4, 0.8], one.seeds, one.folder, one.changes)]
    run_search(found, 3.2)
    assert list(extended(found, 10)[0].jobs) == [0.2, 0.4, 0.8, 1.6]


def test_a_grid_has_an_end(table, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "MOST_RATES", 5)
    found = candidates(table, tmp_path)[:1]
    for _ in range(6):
        run_search(found, 64.0)
        found = extended(found, 10)
    assert list(found[0].jobs) == [1, 2, 4, 8, 16]


def test_a_grid_of_which_no_rate_learns_stays_as_it_is(table, tmp_path):
    found = candidates(table, tmp_path)[:1]
    for job in search.jobs_of(found):
        write_run_into(job.folder, job.resolved, job.seed, 14.0 if job.seed == 100 else 11.0)
    assert [list(one.jobs) for one in extended(found, 10)] == [[1, 2, 4]]
    assert [list(one.jobs) for one in extended(found, None)] == [[0.5, 1, 2, 4]]


def test_usable_rates_are_within_a_standard_error_of_the_best(table, tmp_path):
    found = candidates(table, tmp_path)[:1]
    tops = {1: (88.8, 90.8), 2: (90.0, 92.0), 4: (89.5, 91.5)}  # standard error 1: variance 2 of two seeds
    for rate, jobs in found[0].jobs.items():
        for job, top1 in zip(jobs, tops[rate]):
            write_run_into(job.folder, job.resolved, job.seed, top1)
    (method,) = summarise(found, "demo", "v1", 10)["methods"].values()
    assert (method["winner"], method["usable"]) == (2, [2, 4])


def test_a_diverged_run_counts_as_guessing(table, tmp_path):
    found = candidates(table, tmp_path)[:1]
    run_search(found, 2, status="diverged")
    summary = summarise(found, "demo", "v1", 10)
    (method,) = summary["methods"].values()
    assert [entry["mean"] for entry in method["rates"]] == [10, 10, 10]
    assert (method["winner"], method["usable"]) == (None, None) and summary["rule"].endswith("counts as 10")


def searched(table, demo):
    found = candidates(table, demo / "search")
    for one in found:
        run_search([one], list(one.jobs)[1])
    path = demo / "search" / "search.json"
    path.write_text(json.dumps(summarise(found, "demo", "v1", 10)))
    return load_table("demo", searched=path)


NOISE = [0.0, 0.3, -0.2, 0.1, -0.1]


def rows_of(**means):
    return {f"net/{name.replace('_', '-')}": [mean + each for each in NOISE] for name, mean in means.items()}


def test_primary_comparisons_are_corrected_by_holm(table, demo, tmp_path):
    table = searched(table, demo)
    accuracies = rows_of(clars_64=90, clars_512_linear=80, clars_512_tuned=85)
    accuracies |= {"net/lars-64": [89.0, 90, 88, 89, 90], "net/lars-512-sqrt": [79.5, 81, 78, 80, 79]}
    accuracies |= {"net/lars-512-tuned": [84.6, 84.7, 84.5, 84.7, 84.4], "net/lars-warmup-512-tuned": [84.0] * 5}
    run_rows(table, tmp_path, accuracies)
    one, two, three = verdict.judge(table, tmp_path)
    cells = [cell for cell in (*one.cells, *two.cells) if cell.p is not None]
    assert [(cell.batch, cell.rates) for cell in cells] == [(64, ""), (512, "tuned"), (512, "linear, sqrt")]
    names = [("clars-64", "lars-64"), ("clars-512-tuned", "lars-512-tuned"), ("clars-512-linear", "lars-512-sqrt")]
    plain = [stats.ttest_rel(*(accuracies[f"net/{name}"] for name in pair)).pvalue for pair in names]
    order = sorted(range(3), key=lambda place: plain[place])
    wanted, least = [0.0] * 3, 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, plain[place] * (3 - rank)))
        wanted[place] = least
    assert [cell.p for cell in cells] == pytest.approx(wanted)
    assert [cell.verdict for cell in cells] == [
        verdict.HOLDS if p < 0.05 and cell.mean > 0 else verdict.OPEN for p, cell in zip(wanted, cells)
    ]
    assert {cell.verdict for cell in cells} == {verdict.HOLDS, verdict.OPEN}
    assert not any(cell.corrected for cell in three.cells)


def test_a_larger_p_value_stays_larger_when_corrected(table):
    """0.02, 0.021 and 0.03 times 3, 2 and 1 are 0.06, 0.042 and 0.03: none may fall below one that was smaller."""
    cells = [verdict.Cell("net", 64, "", 5, 1.0, 0.5, p) for p in (0.03, 0.02, 0.021)]
    judgement = verdict.Judgement(table.head.comparisons[0], "CLARS", "LARS", cells)
    (found,) = verdict._corrected([judgement])
    assert [cell.p for cell in found.cells] == pytest.approx([0.06] * 3)
    assert [cell.verdict for cell in found.cells] == [verdict.OPEN] * 3


def test_a_cell_in_which_no_method_learns_is_void(table, demo, tmp_path):
    table = searched(table, demo)
    run_rows(table, tmp_path, rows_of(clars_64=80, lars_64=70, clars_512_tuned=39.0, lars_512_tuned=12.0))
    small, *_, large = [cell for cell in verdict.judge(table, tmp_path)[0].cells if cell.n]
    assert (small.void, large.void, large.verdict) == (False, True, verdict.VOID)
    run_rows(table, tmp_path, rows_of(lars_warmup_512_tuned=60.0))  # one that learns is enough
    assert not any(cell.void for cell in verdict.judge(table, tmp_path)[0].cells)


def test_what_diverged_enters_differences_as_guessing(table, demo, tmp_path):
    table = searched(table, demo)
    run_rows(table, tmp_path, rows_of(clars_64=80))
    run_rows(table, tmp_path, {"net/lars-64": [55.0] * 5}, status="diverged")
    assert verdict.judge(table, tmp_path)[0].cells[0].mean == pytest.approx(70.02)


def test_the_table_and_its_figures(table, demo, tmp_path):
    table = searched(table, demo)
    run_rows(table, tmp_path / "out", rows_of(clars_64=80, lars_64=70, clars_512_tuned=75, lars_512_tuned=60))
    made = generate(table, tmp_path / "out")
    pictures = {"accuracy-by-rate.png", "warmup-gain.png", "accuracy-by-batch.png"}
    assert {file.name for file in made.files if file.suffix == ".png"} == pictures
    text = (tmp_path / "out" / "table.md").read_text()
    assert "**Primary: One.**" in text and "corrected by Holm's method" in text and "10 %" in text
    assert "usable" in text and "| net | CLARS | 64 | 2 | 2 to 2 |" in text


def test_the_first_epoch_shows_tuned_rows_at_the_largest_batch_that_measured_it(table, demo, tmp_path):
    table = searched(table, demo)
    run_rows(table, tmp_path, rows_of(clars_64=80, lars_512_tuned=60))
    assert not first_epoch.figure(table, tmp_path).panels  # records of before
    for seeds, losses in ((2, [2.2, 1.2, 0.7]), (1, [2.0, 1.0, 0.5])):
        run_rows(table, tmp_path, {"net/clars-512-tuned": [70.0] * seeds}, first_epoch_losses=losses)
    (panel,) = first_epoch.figure(table, tmp_path).panels
    assert (panel.place, panel.best, [curve.label for curve in panel.curves]) == (("net", 512), 70.0, ["CLARS"])
    assert panel.curves[0].x == [1 / 3, 2 / 3, 1] and panel.curves[0].y == pytest.approx([2.1, 1.1, 0.6])


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("scaled: [clars, lars]", "tuned: [clars]", "product.tuned: has no effect beside product.rates"),
        ("      rates: [linear, sqrt, tuned]\n", "", "product.scaled: has no effect without"),
        (TABLE[TABLE.index("    search:") :], "", "accuracy-by-rate shows the search of a product"),
        ("warmup_of: lars,", "warmup_of: adam,", "warmup_of: 'adam' is none of"),
        ("scaled: [clars, lars]", "scaled: [adam]", "product.scaled: 'adam' is none of"),
    ],
)
def test_what_cannot_be_is_named(table, demo, old, new, message):
    write(demo / "recipes", table=TABLE.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        load_table("demo")


def test_the_newest_search_without_a_published_one_counts(table, demo):
    assert all("was not searched yet" in row.lacking for row in table.rows)
    assert all(row.lacking is None for row in searched(table, demo).rows)
    assert load_table("demo").search == table.results / "search.json"


def test_an_older_version_with_results_is_shown_as_superseded(demo):
    results = demo / "recipes" / "demo" / "results" / "v1" / "lite"
    old = load_table("demo")
    run_rows(old, results, {"small": [90.0], "large": [80.0]})
    newer = demo / "recipes" / "demo" / "v2"
    newer.mkdir()
    for name, text in (("net", NET), ("table", TABLE.replace("chance: 10", "chance: 10\nsupersedes: It was wrong."))):
        (newer / f"{name}.yaml").write_text(text)
    page = overview()
    assert "*v1, superseded*: It was wrong." in page and "`clars table demo@v1`" in page


def test_a_table_searches_what_it_lacks(demo):
    """One process runs search and rows from nothing; three epochs of a tiny network."""
    small = TABLE.replace("[1, 2, 4]", "[4, 8]").replace("[100, 101]", "[100]").replace("extend: true", "extend: false")
    small = small.replace("seeds: [0, 1, 2, 3, 4]", "seeds: [0]").replace("batches: [64, 512]", "batches: [64]")
    small = small.replace(", batches: [512]", "").replace("scaling: sqrt", "scaling: none")
    write(
        demo / "recipes",
        net=NET.replace("epochs: 3", "epochs: 1"),
        table=small.replace("warmup_epochs: 1", "warmup_epochs: 0.5"),
    )
    with pytest.raises(SystemExit) as ended:
        main(["table", "demo", "--launch", "cpu", "--out", "out"])
    assert ended.value.code == 0
    assert json.loads((demo / "out" / "search" / "search.json").read_text())["methods"]["net/clars-64"]["winner"]
    assert (demo / "out" / "table.md").exists()
