import pytest
import torch
from accelerate import Accelerator
from torch import nn

from clars.data.digits import TensorImages
from clars.training.evaluation import evaluate, recalibrate


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
