"""What verification finds: by whatever path a checkpoint is named, and whatever its configuration claims."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny import change, tensors_of

import clars
from clars.errors import CheckpointError
from clars.lab import shipped
from clars.lab.checkpoints import form, manifest, pull
from clars.lab.checkpoints.verify import verify


def test_verify(published):
    first, second, third, fourth = verify("small")
    assert first == "files: 5 with the SHA-256 of the manifest"
    assert second == "weights: 56 tensors with the names, shapes and types of resnet8"
    assert third == "configuration: classes and statistics are those of the data"
    assert fourth.startswith("top-1: ")
    assert len(list(verify(str(published), data=False))) == 2


def linked(folder):
    Path("link").symlink_to(folder)
    return "./link"


def linked_above(folder):
    Path("above").symlink_to(folder.parent, target_is_directory=True)
    return "above/small/"


PATHS = {
    "relative": lambda folder: "checkpoints/small",
    "with a slash": lambda folder: "checkpoints/small/",
    "from here": lambda folder: "./checkpoints/small",
    "there and back": lambda folder: "runs/../checkpoints//small/.",
    "absolute": str,
    "a path": lambda folder: Path("checkpoints/small"),
    "a link": linked,
    "a link above": linked_above,
}


@pytest.mark.parametrize("name", PATHS.values(), ids=PATHS)
def test_every_path_of_a_name_has_its_hashes_compared(published, name):
    """By a relative path, or through a link, the files were compared with no hash."""
    path = name(published)
    assert next(verify(path, data=False)) == "files: 5 with the SHA-256 of the manifest"
    content = (published / form.CARD).read_text()
    (published / form.CARD).write_text(content + "\n")
    with pytest.raises(CheckpointError, match="is not what was published"):
        list(verify(path, data=False))
    with pytest.raises(CheckpointError, match="is not what was published"):
        clars.load(path)


def test_the_folder_that_one_stands_in(published, monkeypatch):
    monkeypatch.chdir(published)
    assert next(verify(".", data=False)) == "files: 5 with the SHA-256 of the manifest"


def test_a_copy_is_told_to_be_one(published):
    shutil.copytree(published, "copy")
    assert next(verify("./copy", data=False)).startswith("files: 5 of no name in the manifest")
    (manifest.root() / manifest.FILE).unlink()
    assert clars.load("./copy") is not None


def of_no_name(folder):
    shutil.copytree(folder, "elsewhere")
    return Path("elsewhere")


def prepared(folder, **changes):
    whole = json.loads((folder / form.CONFIG).read_text())
    change(folder / form.CONFIG, pretrained_cfg=whole["pretrained_cfg"] | changes)


def labelled(folder, names):
    change(folder / form.CONFIG, label_names=names)


@pytest.mark.parametrize("spoil, message", [
    (lambda folder: labelled(folder, list("9876543210")), r"label_names is \('9', .*; by the data it is \('0'"),
    (lambda folder: labelled(folder, [*"012345678", "nine"]), "label_names is"),
    (lambda folder: labelled(folder, None), "label_names is None; by the data"),
    (lambda folder: prepared(folder, mean=[0.9]), r"mean is \(0.9,\); by the data it is \(0.30"),
    (lambda folder: prepared(folder, std=[0.5]), r"std is \(0.5,\); by the data it is \(0.37"),
    (lambda folder: prepared(folder, mean=[0.31]), "mean is"),
])  # fmt: skip
def test_a_configuration_that_does_not_fit_the_data(published, spoil, message):
    """Reversed class names and other statistics were accepted: the accuracy is measured without either."""
    folder = of_no_name(published)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        list(verify(folder))


def test_statistics_that_the_recipe_names_are_compared_without_data(published):
    """A configuration might say another mean than the recipe, and no one noticed."""
    folder = of_no_name(published)
    whole = json.loads((folder / form.RECORD).read_text())["settings"]
    whole["data"] |= {"mean": [0.25], "std": [0.5]}
    change(folder / form.RECORD, settings=whole)
    (folder / form.RECIPE).write_text(json.dumps(whole))
    prepared(folder, mean=[0.25], std=[0.5])
    assert form.read(folder).config.pretrained_cfg.mean == (0.25,)
    prepared(folder, mean=[0.26])
    with pytest.raises(CheckpointError, match=r"mean is \(0.26,\); by the recipe it is \(0.25,\)"):
        clars.load(folder)


def test_weights_that_do_not_do_what_the_record_says(published):
    """The files agree with each other; only the measurement tells."""
    folder = of_no_name(published)
    tensors = tensors_of(folder)
    save_file(tensors | {"fc.weight": -tensors["fc.weight"]}, folder / form.WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what the run saved: by run\.json"):
        clars.load(folder)
    change(folder / form.RECORD)  # which takes the digests out
    with pytest.raises(CheckpointError, match="% top-1, and reaches "):
        list(verify(folder))


@pytest.mark.parametrize("changes, message", [
    ({"architecture": "resnet20"}, "architecture is 'resnet20' in the manifest, and 'resnet8' by the record"),
    ({"seed": 4}, "seed is 4 in the manifest, and 3 by the record"),
    ({"recipe": "other/small"}, "recipe is 'other/small'"),
    ({"weights": "ema"}, "weights is 'ema'"),
    ({"overrides": ["epochs=1"]}, "overrides is"),
    ({"top1": {"value": 99.0}}, "top1.value is 99.0"),
    ({"top1": {"data": "glyphs"}}, "top1.data is 'glyphs'"),
    ({"top1": {"split": "validation"}}, "top1.split is 'validation'"),
])  # fmt: skip
def test_a_manifest_that_says_something_else_than_the_record(published, changes, message):
    """The list showed any accuracy that stood in the manifest, as long as the files had their hashes."""
    path = manifest.root() / manifest.FILE
    known = json.loads(path.read_text())["checkpoints"]["small"]
    top1 = known["top1"] | changes.pop("top1", {})
    change(path, checkpoints={"small": known | changes | {"top1": top1}})
    with pytest.raises(CheckpointError, match=message):
        list(verify("small", data=False))


def test_a_manifest_that_lets_the_accuracy_be_anything(published):
    path = manifest.root() / manifest.FILE
    known = json.loads(path.read_text())["checkpoints"]["small"]
    change(path, checkpoints={"small": known | {"top1": known["top1"] | {"tolerance": 100}}})
    with pytest.raises(CheckpointError, match=r"accuracy differ by 100\.00 points; for 360 examples it is 0\.28"):
        list(verify("small"))


def test_what_is_loaded_is_what_was_hashed(published, monkeypatch):
    """The files were read again after their hashes had been compared, and by then could be others."""
    expected = clars.load("small")(torch.ones(1, 1, 8, 8))
    checked = manifest.check

    def then_exchange(entry, name, content, place):
        checked(entry, name, content, place)
        if name != form.WEIGHTS:
            return
        tensors = tensors_of(published)
        save_file({key: value * 0 for key, value in tensors.items()}, published / "other")
        os.replace(published / "other", published / form.WEIGHTS)
        prepared(published, mean=[0.9])

    monkeypatch.setattr(manifest, "check", then_exchange)
    network = clars.load("small")
    assert torch.equal(network(torch.ones(1, 1, 8, 8)), expected)
    assert network.pretrained_cfg["mean"] != (0.9,)


def test_the_network_is_described_to_timm_as_if_timm_had_read_it(published):
    own, timms = clars.load("small"), timm.create_model(f"local-dir:{published}", pretrained=True)
    described = {key: value for key, value in timms.pretrained_cfg.items() if key not in ("file", "source")}
    assert json.dumps(own.pretrained_cfg, sort_keys=True) == json.dumps(described, sort_keys=True)
    keys = ("mean", "std", "input_size", "crop_pct", "interpolation")
    ours, theirs = (timm.data.resolve_model_data_config(network) for network in (own, timms))
    assert all(
        tuple(ours[key]) == tuple(theirs[key]) if isinstance(ours[key], (tuple, list)) else ours[key] == theirs[key]
        for key in keys
    )


def test_a_checkpoint_of_the_package_is_known_in_other_repositories(published):
    """In a folder with recipes of its own, names of the package's manifest were unknown."""
    assert pull.read("digits-resnet8-clars").path == shipped.CLONE / "checkpoints" / "digits-resnet8-clars"
    assert pull.read("small").path == published
