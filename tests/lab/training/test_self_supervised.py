"""Training without labels: views, loss, norms of whole images, and the linear probe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from machine import launch
from safetensors.torch import load_file
from torch.nn import functional as F

import clars
from clars.lab import data
from clars.lab.recipes.load import load
from clars.lab.training import script
from clars.lab.training.objective import objective
from clars.lab.training.probe import probe
from clars.lab.training.views import view

WITHOUT_LABELS = {"self_supervised": {"projector": 16, "predictor": 8}}


def gradient(size=9):
    """Images whose pixel tells where it was: its column, and its row in the second image of each pair."""
    line = torch.arange(float(size)).expand(size, size)
    return torch.stack([line, line.T]).repeat(200, 1, 1)[:, None]


def test_views_are_windows_of_the_image():
    """Sizes, places and mirror images of windows, read off from images that tell where each pixel was."""
    torch.manual_seed(0)
    images = gradient()
    seen = view(images, smallest=0.3, jitter=0.0)
    assert seen.shape == images.shape and seen.min() >= -1e-4 and seen.max() <= 8.0001
    across = (seen[::2, 0, 4, -1] - seen[::2, 0, 4, 0]) / 8  # of the width, with its direction
    down = (seen[1::2, 0, -1, 4] - seen[1::2, 0, 0, 4]) / 8
    assert 0.35 < (across < 0).double().mean() < 0.65 and (down > 0).all()
    assert across.abs().max() <= 1.01 and across.abs().min() >= (0.3 * 3 / 4) ** 0.5 - 0.02
    assert len(across.unique()) > 180


def test_jitter_changes_contrast_and_brightness():
    torch.manual_seed(0)
    seen = view(torch.ones(500, 1, 4, 4), smallest=1.0, jitter=0.4)
    assert torch.allclose(seen, seen[:, :, :1, :1].expand_as(seen), atol=1e-6), "an even image stays even"
    level = seen[:, 0, 0, 0]
    assert 0.2 <= level.min() < 0.35 and 1.65 < level.max() <= 1.8


def task(recipe, **changes):
    settings = load(str(recipe(**WITHOUT_LABELS, **changes))).recipe
    return objective(settings, data.load(settings.data, evaluation="test"), None, torch.device("cpu"))


def test_the_loss_by_its_definition(recipe):
    made = task(recipe)
    one, two = torch.randn(2, 6, 1, 8, 8)
    loss = made.loss(made.network, one, two)
    loss.backward()
    network = made.network
    z1, z2 = (network.projector(network.backbone(images)) for images in (one, two))
    p1, p2 = network.predictor(z1), network.predictor(z2)
    wanted = 0.0
    for p, z in ((p1, z2), (p2, z1)):
        wanted = wanted - 0.5 * (F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(1).mean()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    wanted.backward()
    for own, parameter in zip(found, network.parameters(), strict=True):
        torch.testing.assert_close(own, parameter.grad, atol=1e-6, rtol=1e-4)


def test_an_example_is_an_image_with_both_of_its_views(recipe):
    """Their contributions are summed before the norm is taken, to the sum by a mask over rows of both calls."""
    made = task(recipe, model={"name": "resnet8", "arguments": {"width": 2}})
    network = made.network.double()
    views = torch.randn(2, 4, 1, 8, 8, dtype=torch.float64)
    wanted = clars.oracle.mask_norms(network, lambda model, *both: model(*both).mean(), *views)
    norms = clars.ExampleNorms(network)
    network(*views).mean().backward()
    found = norms.sums()
    assert found.keys() == wanted.keys() and len(found) > 15
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=0)


def test_a_run_and_what_it_leaves(recipe):
    """The network alone, which another recipe begins with."""
    path = recipe(**WITHOUT_LABELS)
    assert script.main([str(path), "--out", "one"]) == 0
    assert script.main([str(path), "--out", "two"]) == 0
    record = json.loads(Path("one/small/seed0/run.json").read_text())
    again = json.loads(Path("two/small/seed0/run.json").read_text())
    assert record["final"] == again["final"] and 20 < record["final"]["top1"] <= 100
    kept = load_file("one/small/seed0/model.safetensors")
    assert "conv1.weight" in kept and not any(name.startswith(("projector", "backbone", "fc")) for name in kept)
    weights = "one/small/seed0/model.safetensors"
    further = recipe("further", model={"name": "resnet8", "arguments": {"width": 4}, "pretrained": weights})
    assert script.main([str(further), "schedule.base_rate=1e-30", "optimizer.name=sgd", "--out", "three"]) == 0
    init = json.loads(Path("three/further/seed0/run.json").read_text())["init"]
    assert init["head"] == "new" and init["sha256"] == record["digests"]["weights"]
    after, moving = load_file("three/further/seed0/model.safetensors"), ("running", "num_batches")
    assert all(
        torch.equal(after[name], value) for name, value in kept.items() if not any(word in name for word in moving)
    )


class Points(data.HeldImages):
    """Images of one pixel that tell their class, or do not."""

    def __init__(self, labels, telling):
        self.labels = labels
        noise = torch.randn(len(labels), 10, generator=torch.Generator().manual_seed(len(labels)))
        self.images = (noise + 8 * F.one_hot(labels, 10) * telling).view(-1, 10, 1, 1)

    def __getitems__(self, indices):
        return self.images[indices], self.labels[indices]


@pytest.mark.parametrize(("telling", "least", "most"), [(1.0, 99, 100), (0.0, 2, 20)])
def test_the_probe_tells_what_features_tell(telling, least, most):
    splits = data.Splits(*(Points(torch.arange(n) % 10, telling) for n in (500, 400)), 10)
    scores = probe(torch.nn.Flatten(), splits, 128, torch.device("cpu"))
    assert least <= scores.top1 <= most and scores.top1 <= scores.top5


def test_features_that_are_not_finite():
    splits = data.Splits(*(Points(torch.arange(n) % 10, float("nan")) for n in (50, 40)), 10)
    top1, top5, loss = probe(torch.nn.Flatten(), splits, 128, torch.device("cpu"))
    assert (top1, top5) == (0.0, 0.0) and np.isnan(loss)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixing": {"mixup": 0.2}}, "mixing has no meaning with self_supervised"),
        ({"label_smoothing": 0.1}, "label_smoothing has no meaning with self_supervised"),
        ({"init": "fashion-resnet8-clars"}, "init has no meaning with self_supervised"),
    ],
)
def test_what_needs_a_classifier(recipe, capsys, changes, told):
    assert script.main([str(recipe(**WITHOUT_LABELS, **changes))]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_equal_one_without_batch_statistics(recipe):
    """BatchNorm of projector and predictor sees other batches there, so losses agree roughly and scores are whole."""
    path = recipe(**WITHOUT_LABELS, epochs=1)
    assert script.main([str(path), "--out", "one"]) == 0
    launch("cpu2", path, "--out", "two")
    one, two = (json.loads(Path(f"{out}/small/seed0/metrics.jsonl").read_text()) for out in ("one", "two"))
    assert one["train_loss"] == pytest.approx(two["train_loss"], abs=0.1)
    assert one["top1"] == pytest.approx(two["top1"], abs=8)
