import pytest
import torch
from accelerate import Accelerator
from torch import nn

from clars.lab.data.digits import TensorImages
from clars.lab.evaluation import evaluate, recalibrate


class Fixed(nn.Module):
    """Returns its input as logits."""

    def forward(self, x):
        return x.flatten(1)


def images(logits, labels):
    return TensorImages(logits[:, :, None, None], labels)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_every_example_counts_once(batch_size):
    """An uneven last batch neither drops nor repeats examples."""
    logits, labels = torch.randn(7, 8), torch.randint(8, (7,))
    scores = evaluate(Accelerator(cpu=True), Fixed(), images(logits, labels), batch_size)
    order = logits.argsort(1, descending=True)
    assert scores.top1 == pytest.approx(100 * (order[:, 0] == labels).float().mean().item())
    assert scores.top5 == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).float().mean().item())
    assert scores.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_the_best_five_count_by_hand():
    """Eight examples whose label is the best of eight classes, the second, ... the last. To count four passed."""
    logits = torch.arange(8.0, 0.0, -1.0).repeat(8, 1)
    scores = evaluate(Accelerator(cpu=True), Fixed(), images(logits, torch.arange(8)), batch_size=3)
    assert (scores.top1, scores.top5) == (100 / 8, 500 / 8)
    expected = sum((8.0 - logits[0]).neg().exp().sum().log() + label for label in range(8)) / 8
    assert scores.loss == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_output_is_not_among_the_best_five_either(spoiled):
    logits = torch.arange(8.0, 0.0, -1.0).repeat(4, 1)
    logits[1, 7] = logits[2, 0] = spoiled
    scores = evaluate(Accelerator(cpu=True), Fixed(), images(logits, torch.tensor([0, 0, 1, 4])), batch_size=2)
    assert (scores.top1, scores.top5) == (25.0, 50.0)


def test_evaluation_is_in_evaluation_mode_and_leaves_training_mode():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(8), nn.Dropout(0.9))
    model[1].running_mean.fill_(1.0)
    scores = evaluate(Accelerator(cpu=True), model, images(torch.eye(8) * 9, torch.arange(8)), batch_size=8)
    assert scores.top1 == 100 and model.training and model[1].num_batches_tracked == 0


def test_top5_needs_more_than_five_classes():
    assert evaluate(Accelerator(cpu=True), Fixed(), images(torch.randn(4, 5), torch.zeros(4).long()), 2).top5 is None


def test_a_non_finite_output_is_wrong():
    logits = torch.tensor([[9.0, 0.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    scores = evaluate(Accelerator(cpu=True), Fixed(), images(logits, torch.zeros(3).long()), 2)
    assert scores.top1 == pytest.approx(100 / 3)


def test_recalibration_forgets_the_initial_statistics():
    model = nn.Sequential(nn.BatchNorm2d(2))
    x = 5 + 3 * torch.randn(64, 2, 4, 4)
    recalibrate(Accelerator(cpu=True), model, TensorImages(x, torch.zeros(64).long()), batch_size=32)
    halves = [half.transpose(0, 1).flatten(1) for half in x.split(32)]
    torch.testing.assert_close(model[0].running_mean, torch.stack([h.mean(1) for h in halves]).mean(0))
    torch.testing.assert_close(model[0].running_var, torch.stack([h.var(1) for h in halves]).mean(0))
    assert model[0].momentum == 0.1
