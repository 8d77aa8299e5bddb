import json

import pytest
from demo import write_run, write_run_into

from clars.errors import UserError
from clars.lab.recipes.load import load
from clars.lab.runs.jobs import pending, read_jobs, require_distinct, write_jobs
from clars.lab.tables.definition import load_table
from clars.lab.tables.jobs import table_jobs


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


@pytest.mark.parametrize("made, asked", [(None, "bf16"), ("no", "bf16"), ("bf16", "no"), ("bf16", "fp16")])
def test_a_run_in_another_precision_is_in_the_way(demo, tmp_path, made, asked):
    """What was asked for was left out in silence. Older records, which do not say, are of float32."""
    write_run(tmp_path, "small", 0, mixed_precision=made)
    write_run(tmp_path, "large", 0, mixed_precision=asked)
    jobs = table_jobs(load_table("demo"), [0], tmp_path)
    message = rf"small/seed0/run\.json is in the way: .*mixed precision {made or 'no'}, not {asked}.*--out.*--overwrite"
    with pytest.raises(UserError, match=message):
        pending(jobs, asked)
    assert pending(jobs) == [] == pending(jobs[:1], made or "no")


def test_a_run_in_another_precision_that_is_not_over_is_left_to_its_state(demo, tmp_path):
    write_run(tmp_path, "small", 0, status="interrupted", mixed_precision="bf16")
    assert len(pending(table_jobs(load_table("demo"), [0], tmp_path), "no")) == 2


def test_the_list_for_the_training_script(demo, tmp_path):
    job = table_jobs(load_table("demo"), [3], tmp_path)[1]
    write_jobs([job], tmp_path / "jobs.json")
    entry = {"recipe": "demo/large@v1", "overrides": [], "seed": 3, "out": str(tmp_path / "large" / "seed3")}
    assert json.loads((tmp_path / "jobs.json").read_text()) == [entry]


JOB = {"recipe": "demo/large", "overrides": [], "seed": 3, "out": "there"}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"{}", "Input should be a valid list"),
        (b"null", "Input should be a valid list"),
        (b"[1]", "0: Input should be a valid dictionary"),
        (b"[[]]", "0: Input should be a valid dictionary"),
        (b"[{}]", r"0\.recipe: Field required"),
        (b"[" * 100_000, "nested too deeply"),
        *(
            (
                json.dumps([{"recipe": "demo/large", "overrides": [], "seed": 3, "out": "there"} | change]).encode(),
                message,
            )
            for change, message in [
                ({"seed": -1}, r"0\.seed: Input should be greater than or equal to 0"),
                ({"seed": 2**32}, r"0\.seed: Input should be less than or equal to 4294967295"),
                ({"seed": 2**80}, "has more than 64 bits"),
                ({"seed": "3"}, r"0\.seed: Input should be a valid integer"),
                ({"seed": True}, r"0\.seed: Input should be a valid integer"),
                ({"seed": 1.0}, r"0\.seed: Input should be a valid integer"),
                ({"seed": None}, r"0\.seed: Input should be a valid integer"),
                ({"overrides": "epochs=2"}, r"0\.overrides: Input should be a valid list"),
                ({"overrides": [2]}, r"0\.overrides\.0: Input should be a valid string"),
                ({"overrides": {"epochs": 2}}, r"0\.overrides: Input should be a valid list"),
                ({"overrides": ["epochs=x"]}, "epochs = 'x' must be"),
                ({"recipe": 5}, r"0\.recipe: Input should be a valid string"),
                ({"recipe": ""}, r"0\.recipe: String should have at least 1 character"),
                ({"recipe": "demo/larg"}, "'demo/larg' is no recipe"),
                ({"out": None}, r"0\.out: Input should be a valid string"),
                ({"out": "runs/seed5"}, r"a run of seed 3 would lie in runs/seed5"),
                ({"more": 1}, r"0\.more: Extra inputs"),
            ]
        ),
    ],
)
def test_what_is_no_list_of_jobs_is_told(demo, tmp_path, capsys, content, message):
    """Seeds below zero, lists for names, and bytes that are no text ended in tracebacks, some after training began."""
    path = tmp_path / "jobs.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_jobs(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_jobs(tmp_path)


def test_two_runs_do_not_share_a_folder(demo, tmp_path):
    """The second was told, after the first was trained, that there is a run already."""
    job = table_jobs(load_table("demo"), [3], tmp_path)[1]
    write_jobs([job, job], tmp_path / "jobs.json")
    with pytest.raises(UserError, match=r"large/seed3: two of the runs asked for would lie there"):
        require_distinct(read_jobs(tmp_path / "jobs.json"))
