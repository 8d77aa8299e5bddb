import json

import pytest
from demo import make_record

from clars.errors import UserError
from clars.lab.recipes.load import load
from clars.lab.runs.record import Record

KEYS = """recipe version recipe_sha256 overrides seed command git versions device threads strategy mixed_precision
world_size global_batch_size micro_batch_size accumulation steps epochs settings optimizer schedule final best
wall_seconds examples_per_second status weights init digests"""


def test_a_record_survives_the_disk(demo, tmp_path):
    record = make_record(load("demo/large"), seed=3)
    record.write(tmp_path / "run.json")
    assert Record.read(tmp_path / "run.json") == record


def test_the_names_in_the_file(demo, tmp_path):
    make_record(load("demo/large"), mixed_precision="no").write(tmp_path / "run.json")
    content = json.loads((tmp_path / "run.json").read_text())
    assert list(content) == KEYS.split()
    assert list(content["git"]) == ["commit", "dirty"]
    assert list(content["final"]) == ["top1", "top5", "loss"]
    assert list(content["best"]) == ["top1", "epoch"]
    assert content["schedule"]["peak_rate"] == 16


def test_a_record_that_does_not_name_its_precision_stays_as_it_is(demo, tmp_path):
    """Every record from before it was named: byte for byte, its digest included."""
    make_record(load("demo/large")).sealed().write(tmp_path / "old.json")
    Record.read(tmp_path / "old.json").write(tmp_path / "new.json")
    assert "mixed_precision" not in json.loads((tmp_path / "old.json").read_text())
    assert (tmp_path / "old.json").read_bytes() == (tmp_path / "new.json").read_bytes()


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_becomes_null(demo, tmp_path, loss):
    final = {"top1": 10.0, "top5": None, "loss": loss}
    make_record(load("demo/large"), final=final, status="diverged").write(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["final"] == final | {"loss": None}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"extra": 1}, "extra: Extra inputs"),
        ({"status": "fine"}, "status: Input should be 'finished'"),
        ({"final": {"top1": 1.0}}, r"final\.top5: Field required"),
    ],
)
def test_what_is_no_record_is_refused_by_name(demo, tmp_path, change, message):
    content = make_record(load("demo/large")).model_dump() | change
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"run.json is no record of a run: {message}"):
        Record.read(tmp_path / "run.json")


def test_a_broken_or_missing_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text('{"recipe": ')
    with pytest.raises(UserError, match=r"run\.json is no record of a run: Expecting value"):
        Record.read(tmp_path / "run.json")
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        Record.read(tmp_path / "none.json")
