"""A record that was changed by hand was believed: it is refused now, by its digest, or by what it contradicts."""

import json
import shutil

import pytest
from demo import seal, write_run, write_run_into
from mutations import mutations

from clars.errors import UserError, printable
from clars.lab import runs
from clars.lab.runs import compact
from clars.lab.runs.jobs import pending
from clars.lab.runs.metrics import Metrics
from clars.lab.runs.record import Record
from clars.lab.tables import search
from clars.lab.tables.definition import load_table
from clars.lab.tables.jobs import table_jobs
from clars.lab.tables.results import keep
from clars.lab.tables.summary import summarise


def put(content, key, value):
    """Change a value below dotted keys; None as a key's value in `value` takes it away."""
    *above, last = key.split(".")
    for name in above:
        content = content[int(name)] if name.isdigit() else content[name]
    content[last] = value


@pytest.fixture
def folder(demo):
    return write_run(demo / "runs", "large", 0)


def edit(folder, digested, **changes):
    """Change a record by dotted keys, with its digest left as it was, or without any, as older records are."""
    path = folder / "run.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        put(content, key.replace("__", "."), value)
    if not digested:
        content["digests"] = None
    path.write_text(json.dumps(content))


READERS = {
    "table": lambda table, out: summarise(table, out),
    "publish": lambda table, out: keep(table, out, table.results),
    "resume": lambda table, out: pending(table_jobs(table, [0], out)),
}
CHANGES = [
    ("final.top1", 91.0, r"final\.top1 is 91\.0, top1 of the last epoch 90\.0"),
    ("final.top1", 100.5, r"final\.top1: Input should be less than or equal to 100"),
    ("final.top1", 250, r"final\.top1: Input should be less than or equal to 100"),
    ("final.top1", -1, r"final\.top1: Input should be greater than or equal to 0"),
    ("final.top1", None, r"final\.top1 is None"),
    ("final.top1", "90", r"final\.top1: Input should be a valid number"),
    ("final.top5", 80.0, r"final\.top1 is 90\.0, more than final\.top5 = 80\.0"),
    ("final.loss", None, r"final\.loss is None"),
    ("best.top1", 99.0, r"best\.top1 is 99\.0, the highest of the metrics is 90\.0"),
    ("best.epoch", 1, r"best\.epoch is 1, by the metrics it is 3"),
    ("best", None, r"best\.top1 is None"),
    ("seed", 1, r"(seed is 1, by the name of the file it is 0|is of seed 1, and seed 0 belongs there)"),
    ("seed", -1, r"seed: Input should be greater than or equal to 0"),
    ("seed", 2**32, r"seed: Input should be less than or equal to 4294967295"),
    ("seed", True, r"seed: Input should be a valid integer"),
    ("steps", 10, r"it has 10 steps, and its last epoch ends after step 9"),
    ("epochs", 4, r"it has 4 epochs, and 3 lines of metrics"),
    ("global_batch_size", 64, r"global_batch_size is 64, not 512 x 1 x 1"),
    ("micro_batch_size", 64, r"global_batch_size is 512, not 64 x 1 x 1"),
    ("world_size", 0, r"world_size: Input should be greater than 0"),
    ("wall_seconds", -1.0, r"wall_seconds: Input should be greater than or equal to 0"),
    ("optimizer.momentum", 0.5, r"optimizer\.momentum is 0\.5, by the recipe it is 0\.9"),
    ("optimizer.name", "lars", r"optimizer\.name is 'lars', by the recipe it is 'clars'"),
    ("optimizer.nme", "lars", r"optimizer\.nme is 'lars'"),
    ("schedule.peak_rate", 8.0, r"schedule\.peak_rate is 8\.0, by the recipe 16"),
    ("schedule.warmup_epochs", 0.0, r"schedule\.warmup_epochs is 0\.0, by the recipe it is 1\.0"),
    ("settings.data.image_size", 16, r"settings\.data is .* by the recipe it is"),
    ("settings.label_smoothing", 0.1, r"settings\.label_smoothing is 0\.1"),
    ("weights", "ema", r"weights are ema, the recipe has no ema"),
]


@pytest.mark.parametrize("key, value, message", CHANGES)
def test_a_record_that_was_changed_is_refused(demo, folder, key, value, message):
    """Tables and --publish took top1 = 100, a seed twice, and steps and settings that contradict the recipe."""
    table, before = load_table("demo"), (folder / "run.json").read_bytes()
    for read in READERS.values():
        edit(folder, True, **{key: value})
        with pytest.raises(UserError, match=r"large/seed0/run\.json is no record of a run: its digest is .* Restore"):
            read(table, demo / "runs")
        edit(folder, False, **{key: value})
        with pytest.raises(UserError, match=rf"large/seed0/run\.json .*{message}.* Restore it"):
            read(table, demo / "runs")
        (folder / "run.json").write_bytes(before)
        read(table, demo / "runs")
    assert not (table.results / "large" / "seed1.json").exists()


@pytest.mark.parametrize(
    "lines, message",
    [
        ([(1, 3, 70.0), (2, 6, 80.0)], "it has 3 epochs, and 2 lines of metrics"),
        ([(1, 3, 70.0), (3, 9, 90.0), (2, 6, 80.0)], "line 2 of the metrics is of epoch 3"),
        ([(1, 3, 70.0), (2, 6, 80.0), (2, 6, 80.0), (3, 9, 90.0)], "line 3 of the metrics is of epoch 2"),
        ([(1, 3, 70.0), (2, 7, 80.0), (3, 9, 90.0)], "epoch 2 ends after step 7, the first after 3"),
        ([(1, 3, 70.0), (2, 6, 101.0), (3, 9, 90.0)], "top1 of epoch 2 is 101.0, which is no percentage"),
        ([(1, 3, 70.0), (2, 6, "80"), (3, 9, 90.0)], "top1 of epoch 2 is '80'"),
        ([(1, 3, 70.0), (2, 6, None), (3, 9, 90.0)], "epoch 2 has no top1"),
        ([(1, 3, 70.0), (2, 6, 80.0), (3, 9, 89.0)], "is 90.0, the highest of the metrics is 89.0"),
        ([], "it has 3 epochs, and 0 lines"),
    ],
)
@pytest.mark.parametrize("published", [False, True])
def test_lines_that_do_not_make_up_the_record_are_refused(demo, folder, lines, message, published):
    """By the record's digest of them where it has one, and anyhow by what they say."""
    path = folder / "metrics.jsonl"
    if published:
        path = compact.write(runs.read_folder(folder), demo / "runs", "large")
        shutil.rmtree(folder)
    content = [{"epoch": epoch, "step": step, "top1": top1} for epoch, step, top1 in lines]
    for digested in (True, False):
        if published:
            whole = json.loads(path.read_text()) | {"metrics": content}
            whole["record"] |= {} if digested else {"digests": None}
            path.write_text(json.dumps(whole))
        else:
            Metrics(path).append(*content)
            edit(folder, digested)
        expected = r"metrics.* changed" if digested else message.replace(".", r"\.")
        with pytest.raises(UserError, match=expected):
            runs.read(demo / "runs", "large")


def test_a_seed_counts_once(demo, folder):
    """seed00 beside seed0, or a published record beside the run that it is of, counted as two."""
    shutil.copytree(folder, folder.with_name("seed00"))
    with pytest.raises(UserError, match=r"seed 0 is there twice: .*seed0.*\. Remove one of them"):
        summarise(load_table("demo"), demo / "runs")
    shutil.rmtree(folder.with_name("seed00"))
    compact.write(runs.read_folder(folder), demo / "runs", "large")
    with pytest.raises(UserError, match="seed 0 is there twice"):
        summarise(load_table("demo"), demo / "runs")


def test_a_copy_is_no_other_seed(demo, folder):
    shutil.copytree(folder, folder.with_name("seed1"))
    with pytest.raises(UserError, match=r"seed1/run\.json contradicts itself: seed is 0, by the name .* it is 1"):
        summarise(load_table("demo"), demo / "runs")


def test_a_run_of_a_search_is_of_its_own_seed(demo, tmp_path):
    (one, *_) = search.candidates(load_table("demo"), tmp_path)
    job, *_ = one.jobs[0.1]
    write_run_into(job.folder, job.resolved, job.seed, 60.0)
    edit(job.folder, False, optimizer__momentum=0.5)
    with pytest.raises(UserError, match=r"optimizer\.momentum is 0\.5"):
        search.summarise([one], "demo", "v1")


def test_a_record_of_an_older_format_counts(demo, folder):
    """Without digests, and without the settings that its version did not know."""
    edit(folder, False)
    content = json.loads((folder / "run.json").read_text())
    for key in ("digests", "settings", "weights", "init"):
        del content[key]
    del content["optimizer"]["estimator"], content["schedule"]["frozen_head_epochs"]
    (folder / "run.json").write_text(json.dumps(content))
    assert summarise(load_table("demo"), demo / "runs")[1].mean == 90.0
    (run,) = runs.read(demo / "runs", "large")
    published = compact.write(run, demo / "results", "large")
    assert json.loads(published.read_text())["record"]["digests"] is None, "it gets none that it did not have"


def test_a_diverged_run_need_not_end_with_its_last_epoch(demo, folder):
    edit(folder, False, status="diverged", epochs=3, steps=11, final__top1=0.0, final__loss=None)
    row = summarise(load_table("demo"), demo / "runs")[1]
    assert (row.n, row.diverged) == (0, 1)


def test_an_interrupted_run_has_no_digest_of_lines_that_are_still_written(demo, tmp_path):
    folder = write_run(tmp_path, "large", 1, status="interrupted", epochs=2, steps=7)
    Metrics(folder / "metrics.jsonl").append({"epoch": 1, "step": 3, "top1": 1.0})
    assert Record.read(folder / "run.json").digests.metrics is None
    assert summarise(load_table("demo"), tmp_path)[1].status == "not run"


def test_the_digest_is_of_the_content_and_not_of_its_form(demo, folder):
    path = folder / "run.json"
    content, record = json.loads(path.read_text()), Record.read(path)
    path.write_text(json.dumps(dict(reversed(content.items())), indent=7, ensure_ascii=False))
    assert Record.read(path) == record
    record.write(path)
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize("count, seed", [(2000, 0), pytest.param(20_000, 1, marks=pytest.mark.slow)])
def test_no_mutation_is_taken_for_the_record(demo, folder, count, seed):
    """Of two thousand changes each is refused in words, or changes nothing that is read."""
    path = compact.write(runs.read_folder(folder), demo / "results", "large")
    (run,) = runs.read(demo / "results", "large")
    taken = 0
    for content in mutations(path.read_bytes(), count, seed):
        path.write_bytes(content)
        try:
            assert runs.read(demo / "results", "large") == [run], content
            taken += 1
        except UserError as error:
            assert len(printable(str(error))) < 2000
    assert taken < count / 10, "spaces between values alone"


def test_files_beside_the_record_are_whole_or_it_is_refused(demo, folder):
    seal(folder)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is gone: by run\.json beside it, its SHA-256 is"):
        runs.read_folder(folder)
