import pytest
import torch
from sklearn.datasets import load_digits

from clars.errors import DataError, RecipeError
from clars.lab.data import load
from clars.lab.recipes.schema import Data


def digits(**settings) -> Data:
    return Data(**{"name": "digits", "image_size": 8, "channels": 1, **settings})


def everything(images) -> tuple[torch.Tensor, torch.Tensor]:
    return images.__getitems__(range(len(images)))


def rows(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in everything(images)[0]}


def test_sizes_types_and_classes():
    splits = load(digits(), evaluation="test")
    assert (len(splits.train), len(splits.test)) == (1437, 360)
    images, labels = splits.train.__getitems__([3, 1, 4])
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (3,) and labels.dtype == torch.int64
    assert splits.num_classes == 10 and splits.class_names == tuple("0123456789")


def test_train_and_test_are_the_library_s_digits_each_once():
    splits = load(digits(mean=[0.0], std=[1.0]), evaluation="test")
    images = torch.cat([everything(splits.train)[0], everything(splits.test)[0]]) * 16
    expected = torch.from_numpy(load_digits().images).float().flatten(1)
    assert sorted(images.flatten(1).tolist()) == sorted(expected.tolist())


def test_every_class_has_its_share_of_the_test_split():
    splits = load(digits(), evaluation="test")
    counts, test_counts = splits.train.labels.bincount(), splits.test.labels.bincount()
    assert ((counts + test_counts) * 0.2 - test_counts).abs().max() <= 1


@pytest.mark.parametrize("evaluation", ["test", "validation"])
def test_splits_are_the_same_in_every_call_whatever_the_seed(evaluation):
    torch.manual_seed(1)
    first = load(digits(), evaluation=evaluation)
    torch.manual_seed(2)
    second = load(digits(), evaluation=evaluation)
    for one, other in ((first.train, second.train), (first.test, second.test)):
        assert all(torch.equal(a, b) for a, b in zip(everything(one), everything(other), strict=True))


def test_validation_is_cut_from_the_training_split_alone():
    pixels = digits(mean=[0.0], std=[1.0], validation_fraction=0.25)
    full, held = load(pixels, evaluation="test"), load(pixels, evaluation="validation")
    assert len(held.test) == 360 and len(held.train) == 1437 - 360
    assert rows(held.train) | rows(held.test) == rows(full.train)
    assert not rows(held.test) & rows(full.test) and not rows(held.train) & rows(held.test)


def test_training_images_have_mean_0_and_standard_deviation_1():
    images, _ = everything(load(digits(), evaluation="test").train)
    assert abs(images.mean()) < 1e-5 and abs(images.std() - 1) < 1e-5


def test_statistics_of_the_recipe_apply_to_pixels_between_0_and_1():
    images, _ = everything(load(digits(mean=[0.5], std=[0.25]), evaluation="test").train)
    assert images.min() == -2 and images.max() == 2


def test_three_channels_repeat_the_one():
    images, _ = load(digits(channels=3), evaluation="test").train.__getitems__([0, 1])
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(images[:, 0], images[:, 2])


def test_other_sizes_are_interpolated():
    constant = load(digits(image_size=16, mean=[0.0], std=[1.0]), evaluation="test").train[0][0]
    native = load(digits(mean=[0.0], std=[1.0]), evaluation="test").train[0][0]
    assert constant.shape == (1, 16, 16)
    assert abs(constant.mean() - native.mean()) < 0.02


def test_augmentation_is_refused():
    with pytest.raises(DataError, match=r"data.augmentation='crop'"):
        load(digits(augmentation="crop"), evaluation="test")


def test_statistics_must_fit_the_channels():
    with pytest.raises(RecipeError, match=r"data.mean=.* has 2 values, data.channels=1"):
        load(digits(mean=[0.1, 0.2]), evaluation="test")


def test_a_share_too_small_for_all_classes_is_refused():
    with pytest.raises(DataError, match=r"data.validation_fraction=0.001"):
        load(digits(validation_fraction=0.001), evaluation="validation")


def test_what_is_held_out_always_is_trained_on_by_nobody():
    tested, validated = (load(digits(hold_out=True), evaluation=split) for split in ("test", "validation"))
    assert torch.equal(everything(tested.train)[0], everything(validated.train)[0])
    assert torch.equal(everything(tested.train)[1], everything(validated.train)[1])
    whole = load(digits(hold_out=False), evaluation="test")
    assert len(whole.train) == len(tested.train) + len(validated.test)
    assert torch.equal(tested.test.labels, whole.test.labels)
