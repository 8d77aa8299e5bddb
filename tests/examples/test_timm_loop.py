"""A loop of timm's parts equals the one that is written out."""

import copy
import math

import by_hand
import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3, adaptive_clip_grad

timm_loop = by_hand.example("timm_loop")
EPOCHS = 4


def rate(step, steps=6):
    """One epoch of warmup from a tenth, then the cosine, constant within an epoch."""
    epoch = step // steps
    return 0.1 if not epoch else (1 + math.cos(math.pi * epoch / EPOCHS)) / 2


CLIPS = {
    "none": (None, "norm", None),
    "norm": (0.01, "norm", 0.01),
    "value": (0.01, "value", lambda own: torch.nn.utils.clip_grad_value_(own, 0.01)),
    "agc": (0.01, "agc", lambda own: adaptive_clip_grad(own, 0.01)),
}


@pytest.mark.parametrize("clip", CLIPS)
def test_it_equals_the_loop_by_hand(clip):
    """To the bit: the scale of the loss is a power of two, and all that it multiplies are powers of the gradient."""
    model, batches = by_hand.network(), by_hand.batches()
    start, expected = copy.deepcopy(model), copy.deepcopy(model)
    clip_grad, mode, same = CLIPS[clip]
    timm_loop.train(model, batches, EPOCHS, clip_grad=clip_grad, clip_mode=mode)
    by_hand.train(expected, batches * EPOCHS, clip=same, rate=rate)
    by_hand.assert_same(model, expected)
    by_hand.assert_moved(model, start)


def test_it_equals_the_definition():
    model, batches = by_hand.network(torch.float64), by_hand.batches(dtype=torch.float64)
    expected = copy.deepcopy(model)
    timm_loop.train(model, batches, EPOCHS, clip_grad=0.1)
    by_hand.train_by_definition(expected, batches * EPOCHS, clip=0.1, rate=rate)
    by_hand.assert_same(model, expected, rtol=1e-9)


def test_mixup():
    model, batches = by_hand.network(), by_hand.batches()
    expected, mixup = copy.deepcopy(model), Mixup(mixup_alpha=0.4, cutmix_alpha=1.0, num_classes=10)
    np.random.seed(0)
    timm_loop.train(model, batches, EPOCHS, clip_grad=None, mixup=mixup)
    np.random.seed(0)
    mixed = [mixup(images.clone(), labels) for images, labels in batches * EPOCHS]
    by_hand.train(expected, mixed, loss=lambda model, x, y: SoftTargetCrossEntropy()(model(x), y), rate=rate)
    by_hand.assert_same(model, expected)


def test_the_average_is_that_of_the_weights_after_each_step():
    model, batches = by_hand.network(), by_hand.batches()
    twin = copy.deepcopy(model)
    average, _ = timm_loop.train(model, batches, EPOCHS, clip_grad=None)
    expected = ModelEmaV3(twin, decay=0.9)
    by_hand.train(twin, batches * EPOCHS, rate=rate, after=lambda: expected.update(twin))
    by_hand.assert_same(average, expected.module)


def test_the_average_runs_and_is_not_tracked():
    model, batches = by_hand.network(), by_hand.batches()
    average, optimizer = timm_loop.train(model, batches, 1)
    optimizer.zero_grad()
    by_hand.mean_loss(average.requires_grad_(), *batches[0]).backward()
    assert optimizer.norms.totals() == {}


def test_the_script(capsys):
    np.random.seed(0)
    by_hand.run_as_script("timm_loop")
    before, after, averaged = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert max(after, averaged) < 0.9 * before
