"""Fashion-MNIST from its own files and from the Hub's, in made-up copies of their forms."""

import gzip
import struct

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from clars.errors import DataError
from clars.lab.data import fashion, idx, load, reachable
from clars.lab.recipes.schema import Data

COUNTS = {"train": 600, "t10k": 100}


def arrays(name):
    draw = np.random.default_rng(len(name))
    return draw.integers(0, 256, (COUNTS[name], 28, 28), dtype=np.uint8), (np.arange(COUNTS[name]) % 10).astype(
        np.uint8
    )


def written(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def files(tmp_path):
    """A folder with the four files, those for training gzipped."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in COUNTS:
        for array, what in zip(arrays(name), ("images-idx3-ubyte", "labels-idx1-ubyte")):
            if name == "train":
                (folder / f"{name}-{what}.gz").write_bytes(gzip.compress(written(array)))
            else:
                (folder / f"{name}-{what}").write_bytes(written(array))
    return folder


@pytest.fixture
def parquet(tmp_path):
    """The same in the schema of zalando-datasets/fashion_mnist."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=fashion.CLASSES)})
    for split, name in (("train", "train"), ("test", "t10k")):
        images, labels = arrays(name)
        columns = {"image": [Image.fromarray(image) for image in images], "label": labels.tolist()}
        path = tmp_path / "parquet" / "fashion_mnist" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return tmp_path / "parquet" / "fashion_mnist"


def data(path, **settings):
    return Data(**{"name": "fashion", "path": str(path), "image_size": 28, "channels": 1, **settings})


def pixels(images):
    return images.__getitems__(range(len(images)))[0]


def rows(images):
    return {image.numpy().tobytes() for image in pixels(images)}


def test_what_is_held_out_is_never_trained_on(files):
    tested, validated = (load(data(files), evaluation=split) for split in ("test", "validation"))
    assert [len(part) for part in (tested.train, tested.test, validated.test)] == [500, 100, 100]
    assert torch.equal(pixels(tested.train), pixels(validated.train))
    assert torch.equal(validated.test.labels.bincount(), torch.full((10,), 10))
    assert not rows(validated.train) & rows(validated.test)
    raw = load(data(files, mean=[0.0], std=[1.0]), evaluation="test")
    assert torch.equal((pixels(raw.test)[:, 0] * 255).round().byte(), torch.from_numpy(arrays("t10k")[0]))
    assert raw.class_names[9] == "Ankle boot"


def test_training_images_have_mean_0_and_standard_deviation_1(files):
    seen = pixels(load(data(files, image_size=14), evaluation="test").train)
    assert seen.shape == (500, 1, 14, 14)
    assert seen.mean().item() == pytest.approx(0, abs=1e-5) and seen.std().item() == pytest.approx(1, abs=1e-5)


def test_fewer_to_train_on_are_some_of_these_of_every_class(files):
    whole, fewer = (
        load(data(files, mean=[0.0], std=[1.0], **own), evaluation="test") for own in ({}, {"train_examples": 200})
    )
    assert torch.equal(fewer.train.labels.bincount(), torch.full((10,), 20))
    assert rows(fewer.train) < rows(whole.train)
    with pytest.raises(DataError, match="train_examples=501: there are 500"):
        load(data(files, train_examples=501), evaluation="test")


def test_the_hub_s_files_are_the_same_images(files, parquet):
    for evaluation in ("test", "validation"):
        one, other = (load(data(path), evaluation=evaluation) for path in (files, parquet))
        for part in ("train", "test"):
            assert torch.equal(pixels(getattr(one, part)), pixels(getattr(other, part)))
            assert torch.equal(getattr(one, part).labels, getattr(other, part).labels)


def test_cut_out_anew_in_every_epoch(files):
    images = load(data(files, augmentation="crop"), evaluation="test").train
    images.place = (0, 0)
    first = pixels(images)
    images.place = (0, 1)
    assert not torch.equal(first, pixels(images))
    with pytest.raises(DataError, match="small images"):
        load(data(files, augmentation="imagenet"), evaluation="test")


def test_without_files_both_ways_are_named(monkeypatch, tmp_path, hub_client):
    hub_client(HF_HUB_OFFLINE=True)
    monkeypatch.setattr(fashion, "PACKAGED", tmp_path / "none")
    nowhere = data(tmp_path).model_copy(update={"path": None})
    with pytest.raises(DataError, match=r"(?s)dataset-fashion-mnist.*data.path=DIR.*parquet"):
        load(nowhere, evaluation="test")
    assert not reachable(nowhere)[0] and "dataset-fashion-mnist" in reachable(nowhere)[1]
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        load(data(tmp_path / "missing"), evaluation="test")


def test_the_package_is_found_by_itself(monkeypatch, files):
    monkeypatch.setattr(fashion, "PACKAGED", files)
    there = data(files).model_copy(update={"path": None})
    assert reachable(there) == (True, f"folder {files}")
    assert len(load(there, evaluation="test").train) == 500


def test_a_file_that_is_missing(files):
    (files / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte"):
        load(data(files), evaluation="test")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:6],
        lambda content: b"\0\0\x0d" + content[3:],
        lambda content: b"",
        lambda content: content[:4] + b"\xff" * 12 + content[16:],
    ],
    ids=["short", "long", "header", "floats", "empty", "huge"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_named(tmp_path, wrong, packed):
    path = tmp_path / ("images.gz" if packed else "images")
    content = wrong(written(arrays("t10k")[0]))
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=str(path)):
        idx.read(path)


def test_a_broken_archive_is_named(tmp_path):
    path = tmp_path / "images.gz"
    whole = gzip.compress(written(arrays("t10k")[0]))
    for content in (whole[: len(whole) // 2], b"no archive", whole[:1000] + b"\0" * 100 + whole[1100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path} cannot be read"):
            idx.read(path)


def test_labels_beyond_the_classes(files):
    labels = arrays("t10k")[1]
    labels[3] = 10
    (files / "t10k-labels-idx1-ubyte").write_bytes(written(labels))
    with pytest.raises(DataError, match="a label is 10"):
        load(data(files), evaluation="test")
