"""Small data sets on disk, in exactly the schemas of well-known ones."""

import datasets
import numpy as np
import pytest
from PIL import Image

from clars.lab.recipes.schema import Data

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """`datasets` sleeps for seconds after each reading, so that no thread outlives the interpreter."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of `datasets` for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def picture(shape: tuple[int, ...], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def write_split(folder, split: str, columns: dict, features: dict | None = None) -> None:
    """Write one parquet file, named as on the Hub."""
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    features = features and datasets.Features(features)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def write_images(folder, image_column, names, shape, counts):
    features = {image_column: datasets.Image(), "label": datasets.ClassLabel(names=names)}
    for offset, (split, count) in enumerate(counts.items()):
        images = [picture(shape, 1000 * offset + row) for row in range(count)]
        labels = [row % len(names) for row in range(count)]
        write_split(folder, split, {image_column: images, "label": labels}, features)


@pytest.fixture
def mnist(tmp_path):
    """40 training and 20 test images in the schema of ylecun/mnist: `image` 28x28 grey, `label`."""
    write_images(tmp_path / "mnist", "image", list("0123456789"), (28, 28), {"train": 40, "test": 20})
    path = str(tmp_path / "mnist")
    return Data(name="ylecun/mnist", config="mnist", path=path, image_size=28, channels=1)


@pytest.fixture
def cifar(tmp_path):
    """40 training and 20 test images in the schema of uoft-cs/cifar10: `img` 32x32 colour, `label`."""
    write_images(tmp_path / "cifar", "img", CIFAR_CLASSES, (32, 32, 3), {"train": 40, "test": 20})
    path = str(tmp_path / "cifar")
    return Data(name="uoft-cs/cifar10", config="plain_text", path=path, image_size=32, image_column="img")


@pytest.fixture
def imagenet(tmp_path):
    """24 training, 7 validation and 3 test images in the schema of ILSVRC/imagenet-1k; labels of the test are -1."""
    names = [f"class {number}" for number in range(1000)]
    write_images(tmp_path / "imagenet", "image", names, (60, 80, 3), {"train": 24, "validation": 7})
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    images = [picture((60, 80, 3), seed) for seed in range(3)]
    write_split(tmp_path / "imagenet", "test", {"image": images, "label": [-1] * 3}, features)
    path = str(tmp_path / "imagenet")
    return Data(name="ILSVRC/imagenet-1k", path=path, image_size=32, augmentation="imagenet", test_split="validation")


@pytest.fixture
def photographs(tmp_path):
    """8 training and 4 validation images of different sizes in folders, one for each of 2 classes."""
    folder = tmp_path / "photographs"
    for split, count in (("train", 4), ("validation", 2)):
        for label, name in enumerate(("n01440764", "n01443537")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                image = picture((50 + 10 * index, 80 - 10 * index, 3), 10 * label + index)
                image.save(folder / split / name / f"{name}_{index}.JPEG")
    return Data(name="photographs", path=str(folder), image_size=32, test_split="validation")


@pytest.fixture
def labelled(tmp_path):
    """Write a data set whose 4x4 grey image in row r has value r everywhere, with the given labels."""

    def write(train: list, test: list, label: object = None, image: object = None) -> Data:
        features = {"image": image or datasets.Image(), "label": label or datasets.Value("int32")}
        for split, labels in (("train", train), ("test", test)):
            images = [np.full((4, 4), row, np.uint8) for row in range(len(labels))]
            if image is None:
                images = [Image.fromarray(pixels) for pixels in images]
            write_split(tmp_path / "labelled", split, {"image": images, "label": labels}, features)
        path = str(tmp_path / "labelled")
        return Data(name="labelled", path=path, image_size=4, channels=1, mean=[0.0], std=[1.0])

    return write
