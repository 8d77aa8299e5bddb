"""Streams against the same data set read as a whole, and what a stream cannot do."""

from pathlib import Path

import datasets
import pytest
import torch

from clars.errors import DataError
from clars.lab.data import batched, load
from clars.lab.launching.division import divide
from clars.lab.training.batches import batches_of, epoch_seed


def in_files(data, count):
    """Cut the file of the training split into several."""
    (whole,) = Path(data.path).rglob("train-*")
    split = datasets.Dataset.from_parquet(str(whole))
    whole.unlink()
    for number in range(count):
        split.shard(count, number).to_parquet(whole.with_name(f"train-{number:05}-of-{count:05}.parquet"))


def streamed(data, **changes):
    return data.model_copy(update={"streaming": True, "train_examples": 40, "shuffle_buffer": 7, **changes})


def everything(images):
    return images.__getitems__(list(images.items()))


@pytest.mark.parametrize("kind", ["mnist", "cifar", "imagenet", "photographs"])
def test_a_stream_holds_the_images_of_the_data_set(request, kind):
    data = request.getfixturevalue(kind)
    stream, whole = load(streamed(data, train_examples=8), evaluation="test"), load(data, evaluation="test")
    assert (stream.num_classes, stream.class_names) == (whole.num_classes, whole.class_names)
    for one, other in zip(everything(stream.test), everything(whole.test)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("files", [1, 3])
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(mnist, files):
    in_files(mnist, files)
    images = load(streamed(mnist), evaluation="test").train
    plain = [cell.image["bytes"] for cell in images.items()]
    one, again, other = ([cell.image["bytes"] for cell in images.shuffled(seed, 0)] for seed in (1, 1, 2))
    assert sorted(one) == sorted(other) == sorted(plain) and one == again
    assert one != plain and one != other


def test_an_epoch_goes_on_where_it_stopped(mnist):
    images = load(streamed(mnist, augmentation="crop"), evaluation="test").train
    images.place = (0, 3)
    order = list(images.shuffled(1, 0))
    assert list(images.shuffled(1, 24)) == order[24:] and list(images.shuffled(1, 40)) == []
    whole, rest = images.__getitems__(order), images.__getitems__(order[24:])
    assert torch.equal(whole[0][24:], rest[0]) and torch.equal(whole[1][24:], rest[1])


@pytest.mark.parametrize("first_step", [0, 2])
def test_processes_share_the_global_batches_of_one(mnist, first_step):
    """40 examples in batches of 12: three steps of two micro-batches on each of two processes."""
    images = load(streamed(mnist), evaluation="test").train
    order = list(images.shuffled(epoch_seed(5, 1), 0))
    shares = []
    for rank in range(2):
        batches = batches_of(images, divide(12, 2, 3), rank, 5)
        batches.epoch, batches.first_step = 1, first_step
        shares.append(list(batches))
        assert len(shares[rank]) == len(batches) == 2 * (3 - first_step)
    together = [cell for parts in zip(*shares) for part in parts for cell in part]
    assert together == order[12 * first_step : 36]


def test_an_epoch_may_be_shorter_and_not_longer_than_the_split(mnist):
    assert len(list(load(streamed(mnist, train_examples=30), evaluation="test").train.shuffled(0, 0))) == 30
    longer = load(streamed(mnist, train_examples=41), evaluation="test").train
    with pytest.raises(DataError, match=r"data.train_examples: split 'train' ended before 41 examples"):
        list(longer.shuffled(0, 0))


def test_the_number_of_examples_is_asked_for_or_read_from_the_card(mnist):
    data = streamed(mnist, train_examples=None)
    with pytest.raises(DataError, match=r"does not tell how many examples split 'train' has.*data.train_examples"):
        load(data, evaluation="test")
    card = "---\ndataset_info:\n  config_name: mnist\n  features:\n  - name: image\n    dtype: image\n  - name: label\n"
    card += "    dtype:\n      class_label:\n        names:\n" + "".join(f"          '{n}': '{n}'\n" for n in range(10))
    card += "  splits:\n  - name: train\n    num_examples: 40\n  - name: test\n    num_examples: 20\n"
    card += "configs:\n- config_name: mnist\n  data_files:\n"
    card += "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in ("train", "test")) + "---\n"
    (Path(mnist.path) / "README.md").write_text(card)
    assert len(load(data, evaluation="test").train) == 40
    with pytest.raises(DataError, match=r"data.train_examples=41: split 'train' has 40"):
        load(streamed(mnist, train_examples=41), evaluation="test")


def test_labels_are_checked_on_the_way(imagenet):
    images = load(streamed(imagenet, test_split="test"), evaluation="test").test
    with pytest.raises(DataError, match=r"the label -1 of example 0 of split 'test' is none of the 1000 classes"):
        next(images.items())


def test_classes_need_names_and_validation_a_split(labelled, mnist):
    with pytest.raises(DataError, match=r"data.label_column='label': its classes have no names"):
        load(streamed(labelled([0, 1], [0, 1])), evaluation="test")
    with pytest.raises(DataError, match=r"evaluation.split='validation' cannot be held out of a stream"):
        load(streamed(mnist), evaluation="validation")


def test_batched():
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]] and list(batched([], 3)) == []
