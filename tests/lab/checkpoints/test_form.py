"""Folders and manifests that lie: each is refused by name, and nothing is written."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import change, files, tensors_of

import clars
from clars.errors import CheckpointError, UserError
from clars.lab.checkpoints import form, manifest, pull


def pickled(folder):
    torch.save(tensors_of(folder), folder / form.WEIGHTS)


def plain_pickle(folder):
    (folder / form.WEIGHTS).write_bytes(pickle.dumps({"a": Evil()}))


class Evil:
    """Would make a file if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def halved(folder):
    tensors = tensors_of(folder)
    save_file(tensors | {"conv1.weight": tensors["conv1.weight"].half()}, folder / form.WEIGHTS)


def link(name):
    def replace(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return replace


def recipe(**changes):
    """Change the recipe, and the record with it."""

    def replace(folder):
        whole = yaml.safe_load((folder / form.RECIPE).read_text()) | changes
        (folder / form.RECIPE).write_text(yaml.safe_dump(whole))
        change(folder / form.RECORD, settings=whole)

    return replace


def config(**changes):
    return lambda folder: change(folder / form.CONFIG, **changes)


def prepared(**changes):
    def replace(folder):
        whole = json.loads((folder / form.CONFIG).read_text())
        change(folder / form.CONFIG, pretrained_cfg=whole["pretrained_cfg"] | changes)

    return replace


def resnet8(**arguments):
    return recipe(model={"name": "resnet8", "arguments": arguments})


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def instead(name, make):
    """Put something else in the place of a file."""

    def replace(folder):
        (folder / name).unlink()
        make(folder / name)

    return replace


def record(**changes):
    def replace(folder):
        whole = json.loads((folder / form.RECORD).read_text())
        change(folder / form.RECORD, final=whole["final"] | changes.pop("final", {}), **changes)

    return replace


HOSTILE = {
    "pickle of torch": (pickled, "is a pickle"),
    "pickle": (plain_pickle, "is a pickle"),
    "other types": (halved, "is F16 of shape"),
    "linked weights": (link(form.WEIGHTS), "is no ordinary file"),
    "linked configuration": (link(form.CONFIG), "is no ordinary file"),
    "a folder for weights": (instead(form.WEIGHTS, Path.mkdir), "is no ordinary file"),
    "a folder for a record": (instead(form.RECORD, Path.mkdir), "is no ordinary file"),
    "a pipe for weights": (instead(form.WEIGHTS, os.mkfifo), "is no ordinary file"),
    "a pipe for a card": (instead(form.CARD, os.mkfifo), "is no ordinary file"),
    "no card": (lambda folder: (folder / form.CARD).unlink(), "README.md is missing"),
    "huge card": (text(form.CARD, bytes(form.LIMIT + 1)), "at most 8000000 are read"),
    "another network": (config(architecture="resnet20"), "architecture is 'resnet20'"),
    "other arguments": (config(model_args={"in_chans": 1, "width": 5}), "model_args is"),
    "arguments of another type": (config(model_args={"in_chans": True, "width": 4}), "model_args is"),
    "a file to load": (prepared(file="/etc/passwd"), "pretrained_cfg.file: Extra inputs"),
    "an address to load": (prepared(url="http://evil"), "pretrained_cfg.url: Extra inputs"),
    "another repository": (prepared(hf_hub_id="evil/x"), "pretrained_cfg.hf_hub_id: Extra inputs"),
    "a loader of its own": (prepared(custom_load=True), "custom_load"),
    "infinite mean": (prepared(mean=[float("inf")]), "Infinity is no number of JSON"),
    "impossible mean": (prepared(mean=[9.0]), r"mean is \(9.0,\); of pixels from 0 to 1 it is 1 numbers from 0 to 1"),
    "impossible std": (prepared(std=[1e-9]), "std is .*1 numbers from 0.001 to 1"),
    "a mean too many": (prepared(mean=[0.5, 0.5]), "mean is .*1 numbers"),
    "another classifier": (prepared(classifier="conv1"), "classifier is 'conv1'; by the architecture it is 'fc'"),
    "another first layer": (prepared(first_conv=None), "first_conv is None; by the architecture it is 'conv1'"),
    "another size": (prepared(fixed_input_size=True), "fixed_input_size is True"),
    "other features": (config(num_features=17), "num_features is 17; by the architecture it is 16"),
    "a label twice": (config(label_names=list("0123456788")), "different label_names is 9"),
    "a label too few": (config(label_names=list("012345678")), "label_names is 9"),
    "classes without end": (config(num_classes=2**63), "has more than 64 bits"),
    "many classes": (config(num_classes=2**62, label_names=None), "num_classes: Input should be less than"),
    "digits without end": (text(form.CONFIG, b'{"num_classes": ' + b"9" * 10_000 + b"}"), "has more than 64 bits"),
    "text for a number": (config(num_classes="10"), "num_classes: Input should be a valid integer"),
    "truth for a number": (prepared(crop_pct=True), "'pretrained_cfg.crop_pct' is True, which would be read as 1.0"),
    "a number for truth": (prepared(custom_load=0), "'pretrained_cfg.custom_load' is 0, which would be read as False"),
    "a fraction for a number": (prepared(input_size=[1.0, 8, 8]), r"input_size\.0' is 1\.0, which would be read as 1"),
    "no json": (text(form.CONFIG, b"{"), "config.json cannot be read"),
    "nothing": (text(form.CONFIG, b""), "config.json cannot be read"),
    "deep json": (text(form.CONFIG, b"[" * 10**5), "nested too deeply"),
    "values without end": (text(form.RECORD, b"[" + b"0," * 10**5 + b"0]"), "has more than 60000 values"),
    "no utf-8": (text(form.RECORD, b'{"recipe": "\xff"}'), "no text in UTF-8"),
    "half a character": (text(form.RECORD, rb'{"recipe": "\ud800"}'), "no text in UTF-8"),
    "a byte order mark": (text(form.CONFIG, b"\xef\xbb\xbf{}"), "BOM"),
    "a key twice": (text(form.CONFIG, b'{"num_classes": 10, "num_classes": 11}'), "'num_classes' stands twice"),
    "a number too large": (text(form.RECORD, b'{"wall_seconds": 1e999}'), "is too large"),
    "deep yaml": (text(form.RECIPE, b"[" * 10**4), "recipe.yaml"),
    "yaml that calls": (text(form.RECIPE, b"!!python/name:os.mkdir"), "recipe.yaml"),
    "another recipe": (record(settings=None), "settings"),
    "no accuracy": (record(final={"top1": None}), "final has top-1 None %"),
    "impossible accuracy": (record(final={"top1": 250.0}), "final.top1: Input should be less than or equal to 100"),
    "a run that went on": (record(status="interrupted"), "a run that interrupted"),
    "a checkpoint to load": (resnet8(checkpoint_path="evil.pth"), "checkpoint_path is no part of an architecture"),
    "weights to load": (resnet8(pretrained=True), "pretrained is no part of an architecture"),
    "a network without end": (resnet8(width=10**9), "'width' is 1000000000, above 16384"),
    "unknown network": (recipe(model={"name": "nonsense"}), "architecture"),
}  # fmt: skip


@pytest.mark.parametrize("spoil, message", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_folder(published, spoil, message):
    shutil.copytree(published, "elsewhere/small")
    spoil(Path("elsewhere/small"))
    spoil(published)
    before = files(".")
    with pytest.raises(CheckpointError, match=message):
        clars.load("./elsewhere/small")
    for name in ("small", published):
        with pytest.raises(CheckpointError, match=r"is not what was published|is missing|is no ordinary file|are read"):
            clars.load(name)
    assert files(".") == before and not os.path.exists("unpickled")


@pytest.mark.parametrize("name", ["smal", "../small", "/", "nowhere/at/all", "", "."])
def test_names_that_are_none(published, name):
    with pytest.raises(CheckpointError):
        clars.load(name)


ENTRY_CHANGES = {
    "a path as a name": (lambda known: {"../x": known["small"]}, "cannot be the name of a checkpoint"),
    "a file beside": (lambda known: with_files(known, **{"../x": known["small"]["files"]["README.md"]}), "files"),
    "a file too few": (lambda known: with_files(known, drop="README.md"), "files must be"),
    "a chain of stores": (lambda known: with_(known, address="simplecache::hf://a/b"), "an address begins with"),
    "no store": (lambda known: with_(known, address="/etc"), "an address begins with"),
    "code": (lambda known: with_(known, address="python://os"), "an address begins with"),
    "no hash": (lambda known: with_(known, recipe_sha256="0"), "recipe_sha256"),
    "foreign key": (lambda known: with_(known, code="x"), "code"),
}


def with_(known, **changes):
    return {"small": known["small"] | changes}


def with_files(known, drop=None, **changes):
    whole = known["small"]["files"] | changes
    return with_(known, files={name: file for name, file in whole.items() if name != drop})


@pytest.mark.parametrize("make, message", ENTRY_CHANGES.values(), ids=ENTRY_CHANGES)
def test_a_hostile_manifest(published, make, message):
    path = manifest.root() / manifest.FILE
    change(path, checkpoints=make(json.loads(path.read_text())["checkpoints"]))
    before = files(".")
    with pytest.raises(CheckpointError, match=message):
        pull.pull("small")
    assert files(".") == before


TEXTS = st.text(max_size=20) | st.sampled_from(["..", "/", "file:///", "\x00"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
PLACES = st.lists(st.integers(0, 10), min_size=1, max_size=4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=5), LEAVES, max_size=2))
def test_any_change_of_a_manifest(published, places, value):
    """It reads as a manifest whose files lie below one folder, or is refused in one message."""
    path = manifest.root() / manifest.FILE
    whole = json.loads(path.read_text())
    part, steps = whole, list(places)
    while len(steps) > 1 and isinstance(part, dict) and part:
        inner = part[list(part)[steps.pop() % len(part)]]
        if not isinstance(inner, dict) or not inner:
            break
        part = inner
    part[list(part)[steps[0] % len(part)]] = value
    target = path.with_name("fuzz")
    target.mkdir(exist_ok=True)
    (target / manifest.FILE).write_text(json.dumps(whole))
    try:
        read = manifest.load(target)
    except UserError as error:
        assert str(target) in str(error)
        return
    for name, entry in read.checkpoints.items():
        assert (target / name).resolve().parent == target.resolve()
        assert set(entry.files) == set(form.FILES)
