"""Batches that are changed on their device, by timm's own code."""

import random

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torch.nn import functional as F

from clars.errors import UserError
from clars.lab.launching.division import divide
from clars.lab.recipes.load import load
from clars.lab.training import script
from clars.lab.training.augmentation import BatchAugmentation
from clars.lab.training.objective import Classification


class Digits:
    num_classes = 10


def augmentation(recipe, processes=1, micro_batch=None, **changes):
    settings = load(str(recipe(**changes))).recipe
    division = divide(settings.batch_size, processes, micro_batch, 1)
    return BatchAugmentation(settings, 10, division, torch.device("cpu"))


def seeded(seed=0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch(n=8):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 1, torch.arange(n) % 10


def test_nothing_is_changed_without_a_setting(recipe):
    images, labels = batch()
    changed, same = augmentation(recipe)(images.clone(), labels)
    assert torch.equal(changed, images) and same is labels


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_images_and_labels_are_mixed_alike(recipe, mode):
    """By shares that labels tell; CutMix has each pixel from one of two images."""
    images, labels = batch()
    changes = {"label_smoothing": 0.1, "mixing": {"mixup": 0.8, "mode": mode}}
    seeded()
    mixed, shares = augmentation(recipe, **changes)(images.clone(), labels)
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    share = (shares[range(8), labels] - 0.01) / 0.9
    torch.testing.assert_close(mixed, share.view(-1, 1, 1, 1) * images + (1 - share).view(-1, 1, 1, 1) * images.flip(0))
    assert not torch.equal(mixed, images)
    seeded()
    cut, shares = augmentation(recipe, mixing={"cutmix": 1.0, "mode": mode})(images.clone(), labels)
    own = (cut == images).flatten(1).double().mean(1)
    torch.testing.assert_close(own, shares[range(8), labels].double(), atol=1e-6, rtol=0)
    assert ((cut == images) | (cut == images.flip(0))).all() and own.min() < 1


def test_it_is_timm_s(recipe):
    images, labels = batch()
    seeded()
    ours = augmentation(recipe, mixing={"mixup": 0.2, "cutmix": 1.0, "switch": 0.3})(images.clone(), labels)
    seeded()
    theirs = Mixup(0.2, 1.0, switch_prob=0.3, label_smoothing=0.0, num_classes=10)(images.clone(), labels)
    assert all(map(torch.equal, ours, theirs))


def test_rectangles_are_erased_in_a_share_of_images(recipe):
    erase = augmentation(recipe, data={"name": "digits", "image_size": 8, "channels": 1, "random_erasing": 0.5})
    images = torch.full((400, 1, 8, 8), 5.0)
    seeded()
    changed, _ = erase(images.clone(), torch.zeros(400))
    share = (changed != images).flatten(1).any(1).double().mean()
    assert 0.4 < share < 0.6


def test_the_loss_of_mixed_labels_is_the_mixture_of_losses(recipe):
    """Smoothing is in the labels already, and must not enter twice."""
    settings = load(str(recipe(label_smoothing=0.1, mixing={"mixup": 0.8}))).recipe
    task = Classification(settings, Digits, divide(256, 1, None, 1), torch.device("cpu"))
    images, labels = batch()
    seeded()
    mixed, shares = task.inputs(images.clone(), labels)
    logits = task.network(mixed)
    share = (shares[0, labels[0]] - 0.01) / 0.9
    own, other = (F.cross_entropy(logits, each, label_smoothing=0.1) for each in (labels, labels.flip(0)))
    torch.testing.assert_close(task.loss(lambda _: logits, mixed, shares), share * own + (1 - share) * other)


def test_images_are_mixed_by_twos(recipe):
    with pytest.raises(UserError, match="a process has 3 in a pass"):
        augmentation(recipe, micro_batch=3, batch_size=6, mixing={"mixup": 0.2})
    assert script.main([str(recipe(batch_size=255, mixing={"mixup": 0.2})), "--out", "odd"]) == 2


def test_a_mixture_of_nothing(recipe, capsys):
    assert script.main([str(recipe(mixing={}))]) == 2
    assert "mixing mixes nothing; give mixing.mixup, mixing.cutmix, or both" in capsys.readouterr().err
