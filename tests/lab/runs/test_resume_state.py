"""A state that is not what was written is refused in one message, and so are lines that are not all there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from machine import interrupt, lines, record, same
from safetensors import safe_open
from safetensors.torch import save_file

from clars.lab import digests
from clars.lab.training import run, script

STATE = Path("parts/small/seed0/resume.safetensors")


def train(*words):
    return script.main([str(word) for word in words])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a run that was interrupted after 7 of 10 steps, of five an epoch, and the same run whole."""
    return tmp_path_factory.mktemp("saved")


@pytest.fixture
def path(recipe, saved, tmp_path, monkeypatch):
    """The recipe, with copies of those runs in the current directory."""
    path = recipe(layer_statistics=1)
    if not any(saved.iterdir()):
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, 7)
            assert train(path, "--out", "parts", "--checkpoint-every", 1) == 130
        assert train(path, "--out", "whole") == 0
        for name in ("parts", "whole"):
            shutil.copytree(name, saved / name)
    else:
        shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return path


def rewrite(change, *, sealed):
    """Change (tensors, metadata) of the state, with a digest that fits where `sealed`, as who means to deceive has."""
    with safe_open(STATE, "pt") as file:
        texts, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors, texts)
    if sealed:
        del texts["sha256"]
        texts["sha256"] = digests.of_tensors(tensors, texts)
    STATE.unlink()
    save_file(tensors, STATE, texts)


def progress(**changes):
    def change(tensors, texts):
        texts["progress"] = json.dumps(json.loads(texts["progress"]) | changes)

    return change


def text(name, value):
    return lambda tensors, texts: texts.__setitem__(name, value)


def without(name):
    return lambda tensors, texts: tensors.pop(name)


def shaped(name, *shape):
    return lambda tensors, texts: tensors.__setitem__(name, torch.zeros(shape))


CHANGES = {
    "no tensor": (without("model.fc.weight"), "lacks model.fc.weight"),
    "other shape": (shaped("model.fc.bias", 9), r"model.fc.bias, of shape (9,), the run has with the shape (10,)"),
    "unknown tensor": (shaped("model.fd.bias", 9), r"model.fd.bias, of shape (9,), the run does not have"),
    "momentum's shape": (shaped("momentum.fc.bias", 9), r"momentum.fc.bias, of shape (9,), the run has with"),
    "unknown momentum": (shaped("momentum.fd", 9), "momentum.fd, of shape (9,), the run does not have"),
    "an average": (shaped("average.fc.bias", 10), "average.fc.bias, of shape (10,), the run does not have"),
    "nothing": (lambda tensors, texts: tensors.clear(), "lacks model."),
    "before the first step": (progress(step=-5), "step: Input should be greater than or equal to 0"),
    "beyond the last step": (progress(step=11), "after 1 epochs and step 11, which is no place in a run of 2"),
    "beyond the last epoch": (progress(step=15, epoch=3), "is after 3 epochs, and metrics.jsonl had 1 lines then"),
    "before its epoch": (progress(step=4), "after 1 epochs and step 4, which is no place"),
    "after its epoch": (progress(step=10), "after 1 epochs and step 10, which is no place"),
    "half a step": (progress(step=6.5), "step: Input should be a valid integer"),
    "no number": (text("progress", '{"epoch": 1, "step": 7, "loss_sum": NaN}'), "NaN is no number of JSON"),
    "too large": (text("progress", '{"epoch": 1, "step": 7, "loss_sum": 1e999}'), "is too large"),
    "negative time": (progress(wall_seconds=-1.0), "wall_seconds: Input should be greater"),
    "no percentage": (progress(best_top1=101.0), "best_top1: Input should be less"),
    "another key": (progress(eopch=1), "eopch: Unexpected keyword argument"),
    "a list": (text("progress", "[]"), "Input should be an object"),
    "cut off": (text("progress", '{"epoch": 1'), "Expecting"),
    "no progress": (lambda tensors, texts: texts.pop("progress"), "'progress'"),
    "another seed": (text("identity", '{"seed": "1"}'), "is of a run with recipe None"),
    "no lines of epochs": (text("marks", "{}"), "is after 1 epochs, and metrics.jsonl had 0 lines then"),
    "marks of another kind": (text("marks", '{"metrics.jsonl": 5}'), "metrics.jsonl: Input should be an object"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_state_of_another_content_is_refused(path, capsys, change, message):
    """It ended in a traceback, or the run went on to other numbers and said that it had finished."""
    rewrite(change, sealed=True)
    before = STATE.read_bytes()
    capsys.readouterr()
    assert train(path, "--out", "parts") == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1 and message in shown and "--overwrite" in shown and "Traceback" not in shown
    assert STATE.read_bytes() == before and record("parts")["status"] == "interrupted"


ALTERED = {
    "a tensor less": without("momentum.fc.weight"),
    "no momentum": lambda tensors, texts: [tensors.pop(name) for name in list(tensors) if name.startswith("momentum.")],
    "another momentum": lambda tensors, texts: tensors["momentum.fc.weight"].mul_(1.001),
    "another weight": lambda tensors, texts: tensors["model.fc.weight"].neg_(),
    "another type": lambda tensors, texts: tensors.update({"model.fc.weight": tensors["model.fc.weight"].double()}),
    "another name": lambda tensors, texts: tensors.update({"momentum.fc.weight": tensors.pop("momentum.fc.bias")}),
    "another step": progress(step=8),
    "other marks": text("marks", "{}"),
    "another digest": text("sha256", "0" * 64),
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_a_state_that_was_changed_is_refused(path, capsys, change):
    """Without its momentum, the run went on to another result, and said that it had finished."""
    rewrite(change, sealed=False)
    capsys.readouterr()
    assert train(path, "--out", "parts") == 2
    assert "it is not what was written, by its own digest. Start anew with --overwrite." in capsys.readouterr().err


def test_a_state_without_a_digest_is_of_an_older_version(path, capsys):
    rewrite(lambda tensors, texts: texts.pop("sha256"), sealed=False)
    assert train(path, "--out", "parts") == 2
    assert "it has no digest, as states of older versions" in capsys.readouterr().err
    assert train(path, "--out", "parts", "--overwrite") == 0
    assert same("parts", "whole")


def test_an_untouched_state_goes_on(path):
    rewrite(lambda tensors, texts: None, sealed=True)
    assert train(path, "--out", "parts") == 0
    assert same("parts", "whole") and lines("parts", "layers.jsonl") == lines("whole", "layers.jsonl")


@pytest.mark.parametrize(
    "name, damage",
    [
        *(("metrics.jsonl", damage) for damage in ("gone", "empty", "a line more", "changed", "zeros", "binary")),
        *(("layers.jsonl", damage) for damage in ("gone", "first line gone", "changed")),
    ],
)
def test_lines_that_are_not_all_there_are_told(path, capsys, name, damage):
    """Lines that a crash had taken went unnoticed, and the run finished with epochs missing."""
    file = STATE.with_name(name)
    whole = file.read_bytes()
    damaged = {
        "empty": b"",
        "first line gone": whole.partition(b"\n")[2],
        "a line more": b'{"epoch": 0}\n' + whole,
        "changed": whole.replace(b"1", b"2"),
        "zeros": b"\0" * len(whole),
        "binary": b"\xff\xfe" + whole,
    }
    file.unlink() if damage == "gone" else file.write_bytes(damaged[damage])
    capsys.readouterr()
    assert train(path, "--out", "parts") == 2
    shown = capsys.readouterr().err
    assert f"{name}: lines are missing or changed" in shown and "Traceback" not in shown
    if damage == "gone":
        file.write_bytes(whole)
        assert train(path, "--out", "parts") == 0, "restored"
        assert same("parts", "whole") and len(lines("parts", name)) == len(lines("whole", name))


def test_lines_that_were_changed_while_the_run_wrote_them_are_told(path, monkeypatch, capsys):
    """The run ended as finished, with a file that is not what it wrote."""
    original = run.TrainingRun._finish

    def finish(self, *ends):
        self.folder.path.joinpath("metrics.jsonl").write_text("")
        return original(self, *ends)

    monkeypatch.setattr(run.TrainingRun, "_finish", finish)
    assert train(path, "--out", "parts") == 2
    assert "metrics.jsonl was changed while the run wrote it" in capsys.readouterr().err
    assert record("parts")["status"] == "interrupted"


def test_lines_are_on_disk_before_the_state_that_counts_on_them(path, monkeypatch):
    """After a loss of power the state was there, and the lines before it were not."""
    events = []
    replace, sync = run.resume.write_tensors, run.RunFolder._sync
    monkeypatch.setattr(run.RunFolder, "_sync", lambda self: events.append("lines") or sync(self))
    monkeypatch.setattr(run.resume, "write_tensors", lambda *arguments: events.append("state") or replace(*arguments))
    assert train(path, "--out", "again", "--checkpoint-every", 4) == 0
    assert events == ["lines", "state"] * 4 + ["lines"]  # after steps 4, 5, 8 and 10; then before the record


def test_the_digests_of_a_run_are_those_of_its_files(path):
    """As sha256sum tells them."""
    stated = record("whole")["digests"]
    names = {"metrics": "metrics.jsonl", "layers": "layers.jsonl", "weights": "model.safetensors"}
    assert stated.keys() == {"record", *names}
    for key, name in names.items():
        assert stated[key] == digests.of_file(Path("whole/small/seed0", name))


def test_what_a_run_left_that_never_saved_its_state_is_taken_away(path):
    """Lines of layers of an earlier recipe stayed beside the record of a later one, as if they were its own."""
    folder = Path("new/small/seed0")
    folder.mkdir(parents=True)
    for name in ("layers.jsonl", "metrics.jsonl", "model.safetensors"):
        (folder / name).write_text('{"step": 1}\n')
    assert train(path, "--out", "new", "layer_statistics=0") == 0
    assert not (folder / "layers.jsonl").exists()
    assert [line["epoch"] for line in lines("new")] == [1, 2]
