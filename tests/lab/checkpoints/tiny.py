"""A small recipe, and what tests of checkpoints do again and again."""

import json
from pathlib import Path

import yaml
from safetensors.torch import load

from clars.lab.checkpoints import manifest

RECIPE = {
    "description": "a small network, one epoch",
    "model": {"name": "resnet8", "arguments": {"width": 4}},
    "data": {"name": "digits", "image_size": 8, "channels": 1},
    "optimizer": {"name": "clars"},
    "schedule": {"base_rate": 4.0, "base_batch": 64},
    "batch_size": 256,
    "epochs": 1,
}


def write_recipe(root, name="small", **changes):
    path = root / "recipes" / "tiny" / "v1" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def files(root):
    """Every file below a folder with its content, but locks."""
    return {path: path.read_bytes() for path in Path(root).rglob("*") if path.is_file() and path.suffix != ".lock"}


def change(path, **changes):
    """Change keys of a JSON file; a record is then without digests, as older ones are."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | ({"digests": None} if "digests" in content else {}) | changes))


def readdress(address):
    """Let the manifest say that the checkpoint `small` lies elsewhere."""
    path = manifest.root() / manifest.FILE
    content = json.loads(path.read_text())
    content["checkpoints"]["small"]["address"] = address
    path.write_text(json.dumps(content))


def tensors_of(folder):
    """The weights of a folder, copied: a file that stays mapped cannot be overwritten."""
    return load((folder / "model.safetensors").read_bytes())
