"""Local copies in the schemas of public data sets: what comes out of them, and what is refused."""

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch

from clars.errors import DataError, RecipeError
from clars.lab.data import load


def test_mnist_schema(mnist):
    splits = load(mnist, evaluation="test")
    assert (len(splits.train), len(splits.test), splits.num_classes) == (40, 20, 10)
    images, labels = splits.train.__getitems__([11, 0, 39])
    assert images.shape == (3, 1, 28, 28) and images.dtype == torch.float32
    assert labels.tolist() == [1, 0, 9] and labels.dtype == torch.int64
    assert splits.class_names == tuple("0123456789")


def test_cifar_schema(cifar):
    splits = load(cifar, evaluation="test")
    images, _ = splits.test.__getitems__(range(20))
    assert images.shape == (20, 3, 32, 32)
    assert splits.class_names[0] == "airplane"


def test_folders_of_images(photographs):
    splits = load(photographs, evaluation="test")
    images, labels = splits.test.__getitems__(range(4))
    assert images.shape == (4, 3, 32, 32)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    assert splits.class_names == ("n01440764", "n01443537")


def test_parquet_without_the_library_s_notes(labelled):
    """Other writers leave plain structures and integers; the cells hold the same bytes."""
    data = labelled([0, 1, 2, 0, 1, 2], [0, 1, 2])
    for file in Path(data.path).rglob("*.parquet"):
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    splits = load(data, evaluation="test")
    assert (splits.num_classes, splits.class_names) == (3, None)
    assert torch.allclose(splits.train[5][0] * 255, torch.full((1, 4, 4), 5.0))


def test_images_and_labels_stay_together_in_a_validation_split(labelled):
    labels = [row % 4 for row in range(40)]
    splits = load(labelled(labels, [0]), evaluation="validation")
    for images in (splits.train, splits.test):
        pixels, targets = images.__getitems__(range(len(images)))
        rows = (pixels[:, 0, 0, 0] * 255).round().int().tolist()
        assert rows == images.rows.tolist()
        assert targets.tolist() == [labels[row] for row in rows]


def test_validation_is_held_out_class_by_class_without_the_test_split(mnist):
    (Path(mnist.path) / "data" / "test-00000-of-00001.parquet").unlink()
    data = mnist.model_copy(update={"validation_fraction": 0.25})
    first, second = (load(data, evaluation="validation") for _ in range(2))
    assert first.test.labels.bincount().tolist() == [1] * 10
    assert first.train.labels.bincount().tolist() == [3] * 10
    kept, held = set(first.train.rows.tolist()), set(first.test.rows.tolist())
    assert not kept & held and kept | held == set(range(40))
    assert torch.equal(first.test.rows, second.test.rows)


def test_grey_images_become_colour_ones_on_request(mnist):
    data = mnist.model_copy(update={"channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3})
    image, _ = load(data, evaluation="test").train[0]
    assert image.shape == (3, 28, 28) and torch.equal(image[0], image[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_column": "img"}, r"data.image_column='img': .* only the columns 'image', 'label'.*'image'"),
        ({"label_column": "labels"}, r"data.label_column='labels': .* Did you mean 'label'"),
        ({"image_column": "label"}, r"data.image_column='label': .*ClassLabel.* not images"),
        ({"label_column": "image"}, r"data.label_column='image': .*Image.* not class numbers"),
        ({"test_split": "validation"}, r"data.test_split='validation': there is only 'train', 'test'"),
        ({"train_split": "trian"}, r"data.train_split='trian': .* Did you mean 'train'"),
    ],
)
def test_what_the_recipe_names_must_be_there(mnist, change, message):
    with pytest.raises(DataError, match=message):
        load(mnist.model_copy(update=change), evaluation="test")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, -1, -1], [0], "2 labels of split 'train' are missing or negative; the first, -1, is in row 2"),
        ([0, None, 1], [0], "1 labels of split 'train' are missing or negative; .* row 1"),
        ([0, 1], [0, -1], "split 'test' are missing or negative"),
        ([0, 1], [1, 2], "split 'test' are beyond the 2 classes of training; the first, 2, is in row 1"),
    ],
)
def test_every_image_needs_a_class(labelled, train, test, message):
    with pytest.raises(DataError, match=message):
        load(labelled(train, test), evaluation="test")


def test_words_are_no_labels(labelled):
    with pytest.raises(DataError, match=r"data.label_column='label': .*string.* not class numbers"):
        load(labelled(["cat"], ["dog"], label=datasets.Value("string")), evaluation="test")


def test_plain_arrays_are_no_images(labelled):
    data = labelled([0], [0], image=datasets.Array2D((4, 4), "uint8"))
    with pytest.raises(DataError, match=r"data.image_column='image': .*Array2D.* not images"):
        load(data, evaluation="test")


def test_an_empty_split_is_refused(labelled):
    with pytest.raises(DataError, match=r"cannot be read: .*test.* no data"):
        load(labelled([0, 1], []), evaluation="test")


def test_statistics_must_fit_the_channels(mnist):
    data = mnist.model_copy(update={"std": [1.0, 1.0, 1.0]})
    with pytest.raises(RecipeError, match=r"data.std=.* has 3 values, data.channels=1"):
        load(data, evaluation="test")


def test_what_is_held_out_always_is_trained_on_by_nobody(mnist):
    always = mnist.model_copy(update={"hold_out": True, "validation_fraction": 0.25})
    tested, validated = (load(always, evaluation=split) for split in ("test", "validation"))
    numbers = range(len(tested.train))
    assert len(tested.train) == len(validated.train) == 30 and len(tested.test) == 20
    for one, other in zip(tested.train.__getitems__(numbers), validated.train.__getitems__(numbers)):
        assert torch.equal(one, other)
