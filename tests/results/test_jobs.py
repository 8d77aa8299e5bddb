import json

import pytest
from demo import write_run, write_run_into

from clars.errors import UserError
from clars.recipes.load import load
from clars.recipes.tables import load_table
from clars.results.jobs import pending, table_jobs, write_jobs


def test_every_row_and_seed_is_a_job(demo, tmp_path):
    jobs = table_jobs(load_table("demo"), [0, 4], tmp_path)
    assert [(job.resolved.name, job.seed, job.folder) for job in jobs] == [
        (f"demo/{name}", seed, tmp_path / name / f"seed{seed}") for name in ("small", "large") for seed in (0, 4)
    ]


def test_finished_and_diverged_runs_are_not_repeated(demo, tmp_path):
    write_run(tmp_path, "small", 0)
    write_run(tmp_path, "large", 0, status="diverged")
    write_run(tmp_path, "large", 1, status="interrupted")
    left = pending(table_jobs(load_table("demo"), [0, 1], tmp_path))
    assert [(job.resolved.name, job.seed) for job in left] == [("demo/small", 1), ("demo/large", 1)]


def test_a_run_of_other_settings_is_in_the_way(demo, tmp_path):
    write_run_into(tmp_path / "small" / "seed0", load("demo/small", ["epochs=9"]))
    with pytest.raises(UserError, match=r"small/seed0/run\.json is in the way: .*epochs=9.*--overwrite"):
        pending(table_jobs(load_table("demo"), [0], tmp_path))


def test_the_list_for_the_training_script(demo, tmp_path):
    job = table_jobs(load_table("demo"), [3], tmp_path)[1]
    write_jobs([job], tmp_path / "jobs.json")
    entry = {"recipe": "demo/large@v1", "overrides": [], "seed": 3, "out": str(tmp_path / "large" / "seed3")}
    assert json.loads((tmp_path / "jobs.json").read_text()) == [entry]
