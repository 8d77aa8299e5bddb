import json

import pytest
from demo import TABLE, write, write_run_into

from clars.errors import RecipeError, UserError
from clars.lab.tables.definition import load_table
from clars.lab.tables.search import candidates, jobs_of, summarise


def searched(out):
    """What the search of the demo table finds in the runs below `out`."""
    return summarise(candidates(load_table("demo"), out), "demo", "v1")


def run_search(out, accuracies, **changes):
    """Write a run of every job; `accuracies` maps (name, rate) to the top-1 of each seed."""
    for job in jobs_of(candidates(load_table("demo"), out)):
        top1 = accuracies[job.resolved.short_name, job.resolved.recipe.schedule.base_rate][job.seed - 10]
        write_run_into(job.folder, job.resolved, job.seed, top1, **changes)


ACCURACIES = {
    ("small", 0.1): (90.0, 92.0),
    ("small", 0.05): (92.0, 90.0),
    ("large", 2.0): (80.0, 81.0),
    ("large", 4.0): (85.0, 86.0),
}


def test_every_rate_is_tried_on_the_validation_split(demo, tmp_path):
    jobs = jobs_of(candidates(load_table("demo"), tmp_path))
    assert len(jobs) == 2 * 2 * 2
    assert len({job.folder for job in jobs}) == len(jobs)
    assert {job.resolved.recipe.evaluation.split for job in jobs} == {"validation"}
    assert [job.resolved.recipe.schedule.base_rate for job in jobs if job.seed == 10] == [0.1, 0.05, 2.0, 4.0]
    assert jobs[0].resolved.overrides == ("schedule.base_rate=0.1", "evaluation.split=validation")


def test_the_highest_mean_wins_and_ties_go_to_the_smaller_rate(demo, tmp_path):
    run_search(tmp_path, ACCURACIES)
    summary = searched(tmp_path)
    small, large = summary["methods"]["demo/small@v1"], summary["methods"]["demo/large@v1"]
    assert (small["winner"], large["winner"]) == (0.05, 4.0)
    assert small["rates"][0] == {"rate": 0.1, "top1": [90.0, 92.0], "mean": 91.0, "diverged": 0}
    assert summary["budget"] == {"runs_per_method": 4, "runs": 8, "wall_seconds": 16.0}
    assert (summary["split"], summary["seeds"]) == ("validation", [10, 11])
    json.dumps(summary, allow_nan=False)


def test_a_winner_inside_the_grid_is_not_at_its_edge(demo, tmp_path):
    write(demo / "recipes", table=TABLE.replace("[0.1, 0.05]", "[0.1, 0.05, 0.2]").replace("[2, 4]", "[2, 4, 8]"))
    run_search(tmp_path, ACCURACIES | {("small", 0.2): (1.0, 1.0), ("large", 8.0): (99.0, 99.0)})
    methods = searched(tmp_path)["methods"]
    assert (methods["demo/small@v1"]["winner"], methods["demo/small@v1"]["at_edge"]) == (0.05, True)
    assert (methods["demo/large@v1"]["winner"], methods["demo/large@v1"]["at_edge"]) == (8.0, True)
    run_search(tmp_path, ACCURACIES | {("small", 0.2): (1.0, 1.0), ("large", 8.0): (1.0, 1.0)})
    assert searched(tmp_path)["methods"]["demo/large@v1"]["at_edge"] is False


def test_diverged_runs_count_as_nothing(demo, tmp_path):
    run_search(tmp_path, ACCURACIES, status="diverged")
    method = searched(tmp_path)["methods"]["demo/large@v1"]
    assert method["rates"][0] == {"rate": 2.0, "top1": [0.0, 0.0], "mean": 0.0, "diverged": 2}
    assert method["winner"] is None


def test_an_unfinished_search_has_no_winner(demo, tmp_path):
    run_search(tmp_path, ACCURACIES)
    (jobs_of(candidates(load_table("demo"), tmp_path))[0].folder / "run.json").unlink()
    methods = searched(tmp_path)["methods"]
    assert methods["demo/small@v1"]["winner"] is None
    assert methods["demo/small@v1"]["rates"][0]["mean"] is None
    assert methods["demo/large@v1"]["winner"] == 4.0


def test_rates_in_two_precisions_are_not_compared(demo, tmp_path):
    run_search(tmp_path, ACCURACIES, mixed_precision="bf16")
    assert searched(tmp_path)["methods"]["demo/large@v1"]["winner"] == 4.0
    job = jobs_of(candidates(load_table("demo"), tmp_path))[-1]
    write_run_into(job.folder, job.resolved, job.seed, 99.0)
    with pytest.raises(UserError, match=r"one mixed precision.*bf16 in .*; no in .*large/rate4\.0/seed11/run\.json\."):
        searched(tmp_path)


def test_a_table_without_a_search(demo, tmp_path):
    write(demo / "recipes", table=TABLE.partition("search:")[0])
    with pytest.raises(RecipeError, match=r"table\.yaml has no `search`"):
        jobs_of(candidates(load_table("demo"), tmp_path))
