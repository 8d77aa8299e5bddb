"""Glyphs: what is drawn, that it is always the same, and what happens to the file in the cache."""

import hashlib
import multiprocessing
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from PIL import features
from safetensors.numpy import load_file

from clars.errors import DataError
from clars.lab.data import load
from clars.lab.data.glyphs import draw, fonts, store
from clars.lab.data.glyphs.__main__ import picture
from clars.lab.recipes.schema import Data

SMALL = {"train": 720, "test": 360}
# Of the first block of either split: changes with any change of what is drawn, which then needs another store.VERSION.
DIGEST = "0c1db85302aeb07a1e47f1eef40c083fe693bc68738622c9060dbdd895b3303d"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder, and fewer glyphs than there are."""
    monkeypatch.setenv("CLARS_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr(store, "COUNTS", SMALL)
    return tmp_path / "home" / "glyphs"


def settings(**changes) -> Data:
    return Data(**{"name": "glyphs", "image_size": 28, "channels": 1, **changes})


def digest() -> str:
    return hashlib.sha256(b"".join(draw.images(split, 1024).tobytes() for split in ("train", "test"))).hexdigest()


@pytest.mark.skipif(features.version("freetype2") != "2.14.3", reason="needs FreeType 2.14.3: others draw otherwise")
def test_a_change_of_what_is_drawn_is_noticed():
    assert (store.VERSION, digest()) == (1, DIGEST)


def test_an_image_depends_on_its_number_the_split_and_the_seed_alone():
    few, many = draw.images("train", 40), draw.images("train", 1100)
    assert np.array_equal(few, many[:40]) and not np.array_equal(many[:76], many[1024:])
    for other in (draw.images("train", 40, seed=1), draw.images("test", 40)):
        assert not (other == few).all((1, 2)).any()


def test_no_font_and_no_family_is_in_both_splits():
    train, test = (
        {
            next(family for family in ("DejaVu", "STIX", "cmss", "cmtt", "cm") if font.startswith(family))
            for font in part
        }
        for part in (fonts.FONTS["train"], fonts.FONTS["test"])
    )
    assert not train & test and len(set(fonts.FONTS["train"])) == 15 and len(set(fonts.FONTS["test"])) == 6


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_font_has_every_character_in_a_shape_of_its_own(split):
    shapes = fonts.shapes(split).astype(int)
    assert shapes.shape == (len(fonts.FONTS[split]), 2, 36, fonts.BOX, fonts.BOX)
    for font in shapes[:, 0]:
        assert font.any((1, 2)).all() and len({shape.tobytes() for shape in font}) == 36
    assert (shapes[:, 1].sum((2, 3)) > shapes[:, 0].sum((2, 3))).all()  # the bolder ones


def test_sizes_types_and_classes(home):
    splits = load(settings(), evaluation="test")
    assert (len(splits.train), len(splits.test), splits.num_classes) == (720, 360, 36)
    images, labels = splits.train.__getitems__([37, 0, 35])
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.float32
    assert labels.tolist() == [1, 0, 35] and labels.dtype == torch.int64
    assert splits.train.labels.bincount().tolist() == [20] * 36
    assert "".join(splits.class_names[label] for label in labels) == "10Z"


def test_training_images_have_mean_0_and_standard_deviation_1(home):
    images, _ = load(settings(), evaluation="test").train.__getitems__(range(720))
    assert abs(images.mean()) < 1e-5 and abs(images.std(correction=0) - 1) < 1e-5


def test_colour_size_and_statistics_of_the_recipe(home):
    data = settings(channels=3, image_size=32, mean=[0.0, 0.5, 0.0], std=[1.0, 1.0, 0.5])
    images, _ = load(data, evaluation="test").test.__getitems__(range(8))
    assert images.shape == (8, 3, 32, 32)
    torch.testing.assert_close(images[:, 1], images[:, 0] - 0.5)
    torch.testing.assert_close(images[:, 2], images[:, 0] * 2)


def test_fewer_examples_are_the_first_ones(home):
    whole, part = (load(settings(mean=[0.0], std=[1.0], train_examples=n), evaluation="test") for n in (720, 100))
    assert len(part.train) == 100 and len(part.test) == 360
    assert torch.equal(part.train.pixels, whole.train.pixels[:100])
    assert set(part.train.labels.bincount().tolist()) == {2, 3}
    with pytest.raises(DataError, match=r"data.train_examples=721: there are 720 glyphs"):
        load(settings(train_examples=721), evaluation="test")


def test_validation_is_cut_from_the_training_split_class_by_class(home):
    full, held = (load(settings(validation_fraction=0.25), evaluation=kind) for kind in ("test", "validation"))
    assert held.test.labels.bincount().tolist() == [5] * 36 and held.train.labels.bincount().tolist() == [15] * 36
    rows = [{image.numpy().tobytes() for image in split.pixels} for split in (full.train, held.train, held.test)]
    assert rows[0] == rows[1] | rows[2] and not rows[1] & rows[2]


def test_augmentation_is_refused(home):
    with pytest.raises(DataError, match=r"data.augmentation='crop'"):
        load(settings(augmentation="crop"), evaluation="test")


def test_what_was_drawn_is_read_the_next_time(home, monkeypatch):
    first = store.read_or_draw()
    (file,) = home.iterdir()
    monkeypatch.setattr(draw, "images", None)
    second = store.read_or_draw()
    assert all(torch.equal(first[split], second[split]) for split in SMALL) and list(home.iterdir()) == [file]


@pytest.mark.parametrize("harm", ["cut", "changed", "other"])
def test_a_broken_file_is_drawn_anew_with_a_warning(home, harm):
    first = store.read_or_draw()
    (file,) = home.iterdir()
    content = bytearray(file.read_bytes())
    if harm == "changed":
        content[-1] ^= 1
    file.write_bytes({"cut": content[:-1000], "changed": content, "other": b"no tensors"}[harm])
    with pytest.warns(UserWarning, match=f"{file.name} is broken"):
        second = store.read_or_draw()
    assert all(torch.equal(first[split], second[split]) for split in SMALL)
    with warnings.catch_warnings(action="error"):
        store.read_or_draw()


def test_a_full_disk_is_told_once_and_leaves_nothing(home, monkeypatch):
    def full(images, path, metadata):
        path.write_bytes(b"a beginning")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*glyphs .*No space left .*CLARS_CACHE") as told:
        images = store.read_or_draw()
    assert len(told) == 1 and images["train"].shape == (720, 28, 28) and list(home.iterdir()) == []


def test_two_processes_at_once_leave_one_whole_file_of_the_bytes_that_this_one_draws(home):
    def work():
        warnings.simplefilter("error")
        store.read_or_draw()

    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    (file,) = home.iterdir()
    assert all(np.array_equal(value, draw.images(split, SMALL[split])) for split, value in load_file(file).items())


def test_missing_fonts_are_named_with_a_remedy(home, monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataError, match=r"the font .*DejaVuSans.ttf is missing.*pip install --force-reinstall"):
        load(settings(), evaluation="test")
    assert not home.exists()


def test_the_picture():
    assert picture().size == (36 * 28, 12 * 28 + 14)
