"""Recipes that ask for more than a checkpoint's file of weights holds: building ends soon, in words."""

import json
import shutil
import time
from pathlib import Path

import pytest
import yaml
from tiny import change

import clars
from clars.errors import CheckpointError
from clars.lab.checkpoints import architecture, form


@pytest.fixture
def foreign(published):
    """A copy under no name of the manifest, which is compared with no hash."""
    shutil.copytree(published, "elsewhere")
    return Path("elsewhere")


def describe(folder, name, size=8, **given):
    """Let recipe, record and configuration agree on a network, whatever the weights are."""
    whole = yaml.safe_load((folder / form.RECIPE).read_text())
    whole["model"] = {"name": name, "arguments": given}
    whole["data"]["image_size"] = size
    (folder / form.RECIPE).write_text(yaml.safe_dump(whole))
    change(folder / form.RECORD, settings=whole)
    images = {"img_size": size} if name.startswith("vit") else {}
    prepared = json.loads((folder / form.CONFIG).read_text())["pretrained_cfg"] | {"input_size": [1, size, size]}
    arguments = {"in_chans": 1, **images, **given}
    change(folder / form.CONFIG, architecture=name, model_args=arguments, pretrained_cfg=prepared)


@pytest.mark.parametrize("name, given", [
    ("vit_tiny_patch16_224", {"depth": 16384}),
    ("vit_tiny_patch16_224", {"embed_dim": 16384, "num_heads": 1}),
    ("resnet8", {"width": 16384}),
    ("resnet50", {"base_width": 16384}),
])  # fmt: skip
def test_a_network_larger_than_its_file_is_not_built(foreign, name, given):
    """Thousands of layers were built for minutes before the header was looked at."""
    describe(foreign, name, size=16, **given)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match=r"cannot be built: .*larger than the file of its weights"):
        clars.load(foreign)
    assert time.thread_time() - start < 5


def test_building_has_an_end_in_time(foreign, monkeypatch):
    monkeypatch.setattr(architecture, "SECONDS", 0)
    monkeypatch.setattr(architecture, "EACH", 0)
    with pytest.raises(CheckpointError, match="takes longer to build than a network of the file's tensors may"):
        clars.load(foreign)


def test_an_image_without_end_takes_no_memory(foreign):
    """The network was tried on a real image of that size."""
    describe(foreign, "resnet8", size=20_000, width=4)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match="image_size"):
        clars.load(foreign)
    describe(foreign, "resnet8", size=4096, width=4)
    assert form.read(foreign).network().num_features == 16
    assert time.thread_time() - start < 5


@pytest.mark.parametrize("name, given", [
    ("mobilenetv2_100", {"channel_multiplier": 1000}),
    ("resnet8", {"width": 16385}),
])  # fmt: skip
def test_arguments_beyond_all_networks(foreign, name, given):
    """One by which all widths are multiplied may be less than one that is a width."""
    describe(foreign, name, **given)
    with pytest.raises(CheckpointError, match=r"above (100|16384)\. Choose a smaller one"):
        clars.load(foreign)
