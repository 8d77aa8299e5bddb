"""The command line of recipes/train.py, in this process: records, resumption, and every mistake in one line."""

import json
from pathlib import Path

import mixing
import pytest
import torch
from machine import interrupt
from PIL import Image
from safetensors.torch import load_file

from clars.lab import runs
from clars.lab.runs import compact
from clars.lab.runs.record import Record
from clars.lab.training import run, script


def train(*words):
    return script.main([str(word) for word in words])


def read(folder="runs/tiny/small/seed0"):
    return Record.read(Path(folder) / "run.json")


def lines(name, folder="runs/tiny/small/seed0"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def same_weights(a, b):
    a, b = (load_file(Path(folder) / "model.safetensors") for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_and_its_record(recipe):
    path = recipe(layer_statistics=4)
    assert train(path, "--seed", 3) == 0
    record = read("runs/tiny/small/seed3")
    assert (record.recipe, record.version, record.seed, record.status) == ("tiny/small", "v1", 3, "finished")
    assert (record.strategy, record.world_size, record.accumulation, record.micro_batch_size) == ("single", 1, 1, 256)
    assert (record.steps, record.epochs, record.global_batch_size) == (10, 2, 256)
    assert record.schedule["peak_rate"] == 16.0
    assert record.settings["model"]["arguments"] == {"width": 4} and record.settings["data"]["name"] == "digits"
    epochs = lines("metrics.jsonl", "runs/tiny/small/seed3")
    assert [line["epoch"] for line in epochs] == [1, 2] and epochs[-1]["top1"] == record.final.top1
    layers = lines("layers.jsonl", "runs/tiny/small/seed3")
    assert {line["step"] for line in layers} == {4, 8}
    assert all(line["example_norm_sum"] >= line["gradient_norm"] * 0.999 for line in layers)
    assert not Path("runs/tiny/small/seed3/resume.safetensors").exists()


def test_the_same_seed_gives_the_same_weights_and_another_does_not(recipe):
    path = recipe()
    train(path, "--seed", 0, "--seed", 1, "--out", "a")
    train(path, "--seed", 0, "--out", "b")
    assert same_weights("a/small/seed0", "b/small/seed0")
    assert not same_weights("a/small/seed0", "a/small/seed1")


@pytest.mark.parametrize("optimizer", ["clars", "lars", "sgd"])
def test_resuming_gives_the_uninterrupted_numbers_bit_for_bit(recipe, monkeypatch, optimizer):
    path = recipe(epochs=3, optimizer={"name": optimizer}, data={"name": "digits", "image_size": 8, "channels": 1})
    assert train(path, "--out", "whole") == 0
    original = run.TrainingRun._train_epoch

    def interrupted(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(run.TrainingRun, "_train_epoch", interrupted)
    assert train(path, "--out", "parts") == 130
    record = read("parts/small/seed0")
    assert (record.status, record.epochs, record.steps) == ("interrupted", 2, 10)
    assert record.final.top1 is not None
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path, "--out", "parts") == 0
    assert same_weights("whole/small/seed0", "parts/small/seed0")
    keep = ("step", "epoch", "lr", "train_loss", "val_loss", "top1")
    whole, parts = (
        [[line[k] for k in keep] for line in lines("metrics.jsonl", f"{x}/small/seed0")] for x in ("whole", "parts")
    )
    assert whole == parts
    assert read("parts/small/seed0").best == read("whole/small/seed0").best


def test_resuming_another_run_is_refused(recipe, monkeypatch, capsys):
    path = recipe()
    interrupt(monkeypatch, 6)
    assert train(path, "--out", "runs") == 130
    assert train(path, "--out", "runs", "optimizer.weight_decay=0") == 2
    assert "with overrides '', not 'optimizer.weight_decay=0'" in capsys.readouterr().err


def test_killed_between_the_last_epoch_and_the_record(recipe, monkeypatch):
    path = recipe()
    monkeypatch.setattr(run.TrainingRun, "_finish", lambda self, status, scores: _interrupt())
    train(path)
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path) == 0
    assert read().status == "finished" and read().final.top1 == lines("metrics.jsonl")[-1]["top1"]


def test_a_mistake_with_overwrite_loses_nothing(recipe):
    assert train(recipe(epochs=1)) == 0
    before = Path("runs/tiny/small/seed0/run.json").read_bytes()
    assert train(recipe(batch_size=5000), "--overwrite") == 2
    assert Path("runs/tiny/small/seed0/run.json").read_bytes() == before


def _interrupt():
    raise KeyboardInterrupt


def test_a_damaged_state_is_refused(recipe, capsys):
    path = recipe()
    folder = Path("runs/tiny/small/seed0")
    folder.mkdir(parents=True)
    (folder / "resume.safetensors").write_bytes(b"not a state")
    assert train(path) == 2
    assert "cannot be resumed from" in capsys.readouterr().err
    assert train(path, "--overwrite") == 0


def test_a_finished_run_is_never_overwritten(recipe, capsys):
    path = recipe(epochs=1)
    assert train(path) == 0
    before = Path("runs/tiny/small/seed0/run.json").read_bytes()
    assert train(path) == 2
    assert "holds a run that is over" in capsys.readouterr().err
    assert Path("runs/tiny/small/seed0/run.json").read_bytes() == before
    assert train(path, "--skip-finished") == 0
    assert Path("runs/tiny/small/seed0/run.json").read_bytes() == before
    assert train(path, "--overwrite") == 0
    assert Path("runs/tiny/small/seed0/run.json").read_bytes() != before


def test_divergence_is_recorded(recipe):
    path = recipe(optimizer={"name": "sgd"}, schedule={"base_rate": 1e30, "base_batch": 64})
    assert train(path) == 3
    record = read()
    assert record.status == "diverged"
    assert record.final.top1 == 0.0 and record.final.loss is None


def test_a_run_that_diverges_in_its_first_epoch_can_be_published(recipe, tmp_path):
    """It has no line of metrics, and no file of them."""
    assert train(recipe(optimizer={"name": "sgd"}, schedule={"base_rate": 1e30, "base_batch": 64})) == 3
    own = runs.read_folder(Path("runs/tiny/small/seed0"))
    assert own.metrics == [] and own.record.digests.metrics is None
    published = compact.read(compact.write(own, tmp_path / "results", "small"))
    assert (published.record, published.metrics) == (own.record, [])


def test_divergence_in_the_very_last_step(recipe):
    """With one step in all, no loss comes after it that could tell."""
    schedule = {"name": "constant", "base_rate": 1e30, "base_batch": 1024}
    path = recipe(optimizer={"name": "sgd"}, schedule=schedule, batch_size=1024, epochs=1)
    assert train(path) == 3
    assert (read().status, read().steps) == ("diverged", 1)


def test_micro_batches_and_accumulation_change_the_cut_and_not_the_rates(recipe):
    path = recipe()
    train(path, "--out", "whole")
    train(path, "--out", "cut", "--micro-batch", 100)
    record = read("cut/small/seed0")
    assert (record.micro_batch_size, record.accumulation, record.steps) == (64, 4, 10)
    assert [x["lr"] for x in lines("metrics.jsonl", "whole/small/seed0")] == [
        x["lr"] for x in lines("metrics.jsonl", "cut/small/seed0")
    ]


def test_accumulation_without_batch_statistics_gives_the_same_weights(recipe):
    """Any timm model; this one normalises each example by itself."""
    model = {"name": "test_convnext2"}
    path = recipe(model=model, data={"name": "digits", "image_size": 32, "channels": 1}, epochs=1)
    train(path, "--out", "whole")
    train(path, "--out", "cut", "--micro-batch", 64)
    whole, cut = (load_file(f"{out}/small/seed0/model.safetensors") for out in ("whole", "cut"))
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=2e-4, atol=2e-5)


def test_recalibrated_statistics(recipe):
    path = recipe(epochs=1, evaluation={"batch_norm": "recalibrated"})
    assert train(path) == 0
    running = recipe("running", epochs=1)
    assert train(running) == 0
    a, b = (load_file(f"runs/tiny/{name}/seed0/model.safetensors") for name in ("small", "running"))
    assert torch.equal(a["fc.weight"], b["fc.weight"])  # training is the same
    assert not torch.equal(a["bn1.running_mean"], b["bn1.running_mean"])


def test_tracking_by_accelerate(recipe):
    path = recipe(epochs=1)
    assert train(path, "--log-with", "tensorboard") == 0
    assert list(Path("runs/tiny/small/seed0").rglob("events.out*"))


def image_folder(root, classes=3, each=12):
    """A local data set in the schema of an image folder: split/class/file."""
    for split in ("train", "test"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(each):
                colour = (80 * label, 255 - 80 * label, 10 * index)
                Image.new("RGB", (20, 20), colour).save(folder / f"{index}.png")
    return root


def test_a_local_folder_of_images(recipe, tmp_path):
    folder = image_folder(tmp_path / "pictures")
    data = {"name": "pictures", "path": str(folder), "image_size": 16, "augmentation": "crop"}
    path = recipe(data=data, batch_size=12, schedule={"base_rate": 16.0, "base_batch": 12}, epochs=3)
    assert train(path) == 0
    assert read().steps == 9 and read().final.top5 is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(recipe, tmp_path, capsys, workers):
    folder = image_folder(tmp_path / "pictures")
    (folder / "train" / "class1" / "3.png").write_bytes(b"no picture")
    data = {"name": "pictures", "path": str(folder), "image_size": 16, "workers": workers}
    assert train(recipe(data=data, batch_size=36)) == 2
    error = capsys.readouterr().err
    assert "3.png" in error and "Traceback" not in error


def test_mixed_precision_of_accelerate(recipe, monkeypatch, fresh):
    """accelerate wraps the model's own forward, which for a transformer is one that is tracked."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    path = recipe(model={"name": "test_vit"}, data={"name": "digits", "image_size": 32, "channels": 1}, epochs=1)
    assert train(path) == 0
    assert read().final.top1 > 5 and read().mixed_precision == "bf16"


def test_a_jobs_file(recipe):
    path = recipe(epochs=1)
    jobs = [{"recipe": str(path), "overrides": ["optimizer.name=lars"], "seed": 7, "out": "elsewhere"}]
    Path("jobs.json").write_text(json.dumps(jobs))
    assert train("--jobs", "jobs.json") == 0
    assert read("elsewhere").optimizer["name"] == "lars" and read("elsewhere").seed == 7


@pytest.mark.parametrize(
    "changes, words, message",
    [
        ({}, ["tiny/smal"], "Did you mean 'tiny/small'"),
        ({}, ["optimizer.wieght_decay=0"], "weight_decay"),
        ({}, ["epochs=none"], "epochs"),
        ({"batch_size": 2000}, [], "larger than the training set of 1437"),
        ({"model": {"name": "resnet9"}}, [], "model.name='resnet9'"),
        ({"data": {"name": "nowhere/nothing", "image_size": 8}}, [], "data.path"),
        ({"optimizer": {"name": "clars", "overrides": {"bn9": {"adapt": False}}}}, [], "'bn9' matches no layer"),
        ({"model": {"name": "test_vit"}}, [], "model.name='test_vit' cannot be built"),
        ({}, ["--log-with", "nothing"], "nothing"),
        ({}, ["--micro-batch", "0"], "--micro-batch 0"),
    ],
)
def test_mistakes_end_in_one_message_and_write_nothing(recipe, capsys, changes, words, message):
    path = recipe(**changes)
    named = [] if any("/" in word for word in words) else [path]
    assert train(*named, *words) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and message in errors and "Traceback" not in errors
    assert not list(Path().rglob("run.json")) and not list(Path().rglob("metrics.jsonl"))


def test_a_layer_without_a_rule_is_named(recipe, capsys):
    """What it sees depends on several examples."""
    path = recipe(model={"name": mixing.mixes_examples.__name__}, data={"name": "digits", "image_size": 8})
    assert train(path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 2 layers have no exact") and "'norm'" in error and "Traceback" not in error
    assert not list(Path().rglob("*.json*"))


def test_a_folder_that_cannot_be_written(recipe, capsys):
    path = recipe()
    Path("taken").write_text("a file, not a folder")
    assert train(path, "--out", "taken") == 2
    assert "taken" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", str(2**32), "x", "1.0"])
def test_a_seed_that_is_none_is_told(recipe, capsys, seed):
    with pytest.raises(SystemExit) as end:
        train(recipe(), f"--seed={seed}")
    assert end.value.code == 2 and "--seed" in capsys.readouterr().err


def test_the_same_run_twice(recipe, capsys):
    """The second was told, after the first was trained, that there is a run already."""
    assert train(recipe(), "--seed", 1, "--seed", 1) == 2
    assert "two of the runs asked for would lie there" in capsys.readouterr().err
    assert not list(Path().rglob("run.json"))


def test_no_recipe_at_all(recipe, capsys):
    assert train() == 2
    assert "name a recipe" in capsys.readouterr().err


def test_a_worker_that_is_killed_ends_the_run_in_one_message(recipe, pictures, monkeypatch, capsys):
    """As by a machine that is out of memory. It was a traceback, and no record."""
    data = {"name": "pictures", "path": str(pictures), "image_size": 8, "workers": 1}
    schedule = {"base_rate": 1.0, "base_batch": 12}
    path = recipe(data=data, batch_size=12, schedule=schedule, model={"name": "resnet8", "arguments": {"width": 2}})
    after_step = run.TrainingRun._after_step

    def killed(self):
        after_step(self)
        if self.progress.step == 4:
            (worker,) = self.loader._loader._iterator._workers
            worker.kill()
            worker.join()

    monkeypatch.setattr(run.TrainingRun, "_after_step", killed)
    assert train(path) == 1
    errors = capsys.readouterr().err
    assert "error: a process that loads images was lost (DataLoader worker" in errors and "Traceback" not in errors
    assert "data.workers" in errors and "/dev/shm" in errors and "--shm-size" in errors
    assert read().status == "interrupted" and read().steps >= 3
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path) == 0 and read().steps == 6
