"""One epoch of training from small copies in the schemas of public data sets, without network."""

import json
from pathlib import Path

import pytest
import yaml
from machine import distance, launch

from clars.lab.recipes.schema import Data
from clars.lab.training import script


def write(folder: Path, data: Data, **changes) -> Path:
    """Write a recipe of one epoch of a small network on `data`."""
    settings = {
        "description": "one epoch",
        "model": {"name": "resnet8", "arguments": {"width": 4}},
        "data": data.model_dump(exclude_defaults=True),
        "optimizer": {"name": "clars"},
        "schedule": {"base_rate": 1.0, "base_batch": 8},
        "batch_size": 8,
        "epochs": 1,
    } | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def train(folder: Path, data: Data) -> tuple[int, dict]:
    """Run it in this process; return the exit code and the record."""
    path, out = write(folder, data), folder / "runs"
    code = script.main([str(path), "--out", str(out), "--overwrite"])
    return code, json.loads((out / "small" / "seed0" / "run.json").read_text())


@pytest.mark.parametrize("kind, steps", [("mnist", 5), ("cifar", 5), ("imagenet", 3), ("photographs", 1)])
def test_an_epoch_in_the_schema(request, tmp_path, kind, steps):
    code, record = train(tmp_path, request.getfixturevalue(kind))
    assert (code, record["status"], record["steps"]) == (0, "finished", steps)


def test_workers_and_what_they_prepare_change_no_number(imagenet, tmp_path):
    _, alone = train(tmp_path, imagenet)
    _, helped = train(tmp_path, imagenet.model_copy(update={"workers": 2, "prefetch": 1}))
    assert alone["final"] == helped["final"]


def test_a_stream_with_workers_equals_one_without(imagenet, tmp_path):
    stream = imagenet.model_copy(update={"streaming": True, "train_examples": 24, "shuffle_buffer": 9})
    code, alone = train(tmp_path, stream)
    assert (code, alone["steps"]) == (0, 3)
    _, helped = train(tmp_path, stream.model_copy(update={"workers": 2}))
    assert alone["final"] == helped["final"]


def test_auto_is_as_many_workers_as_there_are_cores(imagenet, tmp_path):
    _, alone = train(tmp_path, imagenet)
    code, helped = train(tmp_path, imagenet.model_copy(update={"workers": "auto"}))
    assert code == 0 and alone["final"] == helped["final"] and helped["settings"]["data"]["workers"] == "auto"


@pytest.mark.parametrize("batch_norm", ["running", "recalibrated"])
@pytest.mark.parametrize("augmentation", ["none", "crop"])
def test_from_the_memory_of_the_device_bit_for_bit(cifar, tmp_path, augmentation, batch_norm):
    """The same images, draws and scores as of images that are decoded for each batch."""
    evaluation, finals = {"batch_norm": batch_norm, "batch_size": 7}, []
    for held in (False, True, "device"):
        data = cifar.model_copy(update={"in_memory": held, "augmentation": augmentation})
        path, out = write(tmp_path, data, evaluation=evaluation), tmp_path / f"runs {held}"
        assert script.main([str(path), "--out", str(out), "--micro-batch", "4"]) == 0
        finals.append(json.loads((out / "small/seed0/run.json").read_text())["final"])
        assert distance(out, tmp_path / "runs False") == 0
    assert finals[0] == finals[1] == finals[2]


@pytest.mark.gpu
@pytest.mark.parametrize("augmentation", ["none", "crop"])
def test_a_gpu_trains_from_its_memory_as_from_the_host_s(cifar, tmp_path, augmentation):
    for held in (True, "device"):
        data = cifar.model_copy(update={"in_memory": held, "augmentation": augmentation})
        assert script.main([str(write(tmp_path, data)), "--out", str(tmp_path / f"runs {held}")]) == 0
    assert distance(tmp_path / "runs device", tmp_path / "runs True") < 1e-4


@pytest.mark.slow
def test_two_processes_on_a_stream_equal_one(mnist, tmp_path):
    """Global batches, and the 20 test images, of which the second process has none in the last pass."""
    data = mnist.model_copy(update={"streaming": True, "train_examples": 40, "shuffle_buffer": 9, "image_size": 32})
    path = write(tmp_path, data, model={"name": "test_convnext2"}, evaluation={"batch_size": 19})
    one, two = tmp_path / "one", tmp_path / "two"
    launch("cpu", path, "--out", one)
    launch("cpu2", path, "--out", two, "--micro-batch", 2)
    records = [json.loads((out / "small/seed0/run.json").read_text()) for out in (one, two)]
    assert [(record["world_size"], record["accumulation"]) for record in records] == [(1, 1), (2, 2)]
    assert records[0]["final"]["top1"] == records[1]["final"]["top1"]
    assert records[0]["final"]["loss"] == pytest.approx(records[1]["final"]["loss"], rel=1e-4)
    assert distance(one, two) < 1e-4
