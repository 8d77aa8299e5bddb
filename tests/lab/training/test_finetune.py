"""The recipes that people copy to fine-tune, with a small network and small pictures, on a processor."""

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from clars.lab.training import script

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("name", ["resnet50", "resnet50-clars"])
def test_on_a_folder_of_pictures(pictures, tmp_path, monkeypatch, fresh, name):
    """Every setting of theirs is in force: augmentation, mixing, average, bfloat16, and the weights that are named."""
    monkeypatch.setenv("CLARS_RECIPES", str(RECIPES))
    monkeypatch.chdir(tmp_path)
    save_file(timm.create_model("test_resnet").state_dict(), "weights.safetensors")
    changes = ["model={name: test_resnet, pretrained: weights.safetensors}", f"data.path={pictures}", "epochs=3"]
    changes += ["data.image_size=32", "data.workers=0", "batch_size=12", "schedule.base_batch=12"]
    assert script.main([f"finetune/{name}", *changes, "--out", "runs"]) == 0
    record = json.loads(Path(f"runs/{name}/seed0/run.json").read_text())
    settings = record["settings"]
    assert (record["mixed_precision"], record["weights"], record["init"]["head"]) == ("bf16", "ema", "new")
    assert settings["mixing"]["cutmix"] == 1.0 and settings["data"]["randaugment"] == "rand-m7-mstd0.5-inc1"
    assert settings["optimizer"]["name"] == ("clars" if name == "resnet50-clars" else "timm.adamw")
    assert record["steps"] == 9 and record["final"]["top1"] is not None
