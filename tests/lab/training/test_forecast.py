"""`clars run --dry-run`."""

import pytest
import timm
import torch

from clars.errors import UserError
from clars.lab import cli
from clars.lab.recipes.load import load
from clars.lab.training.forecast import activations, forecast


def kept(model, images):
    """Return the bytes of all storages that a real pass keeps, each once, without the parameters'."""
    own, found = {parameter.data_ptr() for parameter in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "mobilenetv2_100", "convnext_atto", "densenet121"])
def test_activations_are_those_that_a_real_pass_keeps(name):
    import clars.lab.models  # noqa: F401  registers resnet8

    model = timm.create_model(name, num_classes=10).train()
    real = kept(model, torch.randn(2, 3, 64, 64)) / 2
    counted = activations(model.to("meta"), (3, 64, 64))
    assert counted == pytest.approx(real, rel=0.02)  # statistics of BatchNorm are there once for two examples


def test_what_would_run(recipe):
    found = dict(forecast(load(str(recipe(epochs=3))), 2, 16))
    assert found["steps"] == "15 = 3 epochs x 5"
    assert found["batch"] == "256 = 16 examples x 8 passes x 2 processes"
    assert "5,142 weights" in found["memory"] and "KiB activations" in found["memory"]


def test_what_could_not_run_is_told(recipe):
    path = recipe()
    with pytest.raises(UserError, match="cannot be shared by 7 processes"):
        list(forecast(load(str(path)), 7, None))
    with pytest.raises(UserError, match="larger than the training set"):
        list(forecast(load(str(path), ["batch_size=100000"]), 1, None))


def test_nothing_is_written_and_nothing_trains(recipe, capsys, monkeypatch):
    from pathlib import Path

    path = recipe()
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as left:
        cli.main(["run", str(path), "--dry-run", "--launch", "cpu"])
    assert left.value.code == 0 and "activations" in capsys.readouterr().out
    assert sorted(Path.cwd().rglob("*")) == before


def test_data_that_are_elsewhere_leave_out_what_depends_on_them():
    found = dict(forecast(load("imagenet/resnet50"), 1, 32))
    assert "steps" not in found and "for 1,000 classes" in found["memory"] and "GiB" in found["memory"]
