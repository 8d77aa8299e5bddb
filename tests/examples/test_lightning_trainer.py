"""Training by lightning.Trainer equals the loop that is written out."""

import copy

import by_hand
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
from lightning.pytorch.callbacks import StochasticWeightAveraging

lightning_trainer = by_hand.example("lightning_trainer")


def loader(batches):
    images, labels = map(torch.cat, zip(*batches))
    return DataLoader(TensorDataset(images, labels), batch_size=len(batches[0][0]))


def fit(model, batches, *, whole=False, resume=None, **options):
    module = lightning_trainer.Classifier(model, whole=whole)
    options = {"max_epochs": 2, "enable_checkpointing": False} | options
    return lightning_trainer.train(module, loader(batches), resume=resume, **options)


@pytest.mark.parametrize("whole", [False, True], ids=["network", "module"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("parts", "clip"), [(1, None), (2, None), (1, 0.01), (2, 0.01)])
def test_it_equals_the_loop_by_hand(parts, clip, precision, whole):
    model, batches = by_hand.network(), by_hand.batches()
    start, expected = copy.deepcopy(model), copy.deepcopy(model)
    options = {"accumulate_grad_batches": parts, "gradient_clip_val": clip, "precision": precision}
    fit(model, batches, whole=whole, **options)
    by_hand.train(expected, batches * 2, parts=parts, clip=clip, bf16=precision == "bf16-mixed")
    by_hand.assert_same(model, expected)
    by_hand.assert_moved(model, start)


def test_it_equals_the_definition():
    model, batches = by_hand.network(torch.float64), by_hand.batches(dtype=torch.float64)
    expected = copy.deepcopy(model)
    fit(model, batches, accumulate_grad_batches=2, gradient_clip_val=0.1, precision="64-true")
    by_hand.train_by_definition(expected, batches * 2, parts=2, clip=0.1)
    by_hand.assert_same(model, expected, rtol=1e-9)


def test_clipping_by_value():
    model, batches = by_hand.network(), by_hand.batches()
    expected = copy.deepcopy(model)
    fit(model, batches, gradient_clip_val=0.01, gradient_clip_algorithm="value")
    by_hand.train(expected, batches * 2, clip=lambda own: torch.nn.utils.clip_grad_value_(own, 0.01))
    by_hand.assert_same(model, expected)


class Skipping(lightning_trainer.Classifier):
    """Leaves every third batch out."""

    def training_step(self, batch, index):
        return None if index % 3 == 2 else super().training_step(batch, index)


def test_batches_that_are_skipped():
    model, batches = by_hand.network(), by_hand.batches()
    expected = copy.deepcopy(model)
    lightning_trainer.train(Skipping(model), loader(batches), max_epochs=2, enable_checkpointing=False)
    by_hand.train(expected, [batch for index, batch in enumerate(batches) if index % 3 != 2] * 2)
    by_hand.assert_same(model, expected)


def test_averaged_weights(monkeypatch):
    """The callback runs a fourth epoch, for batch statistics, in which the optimizer is called without gradients."""
    seen, batches = [], by_hand.batches()
    model, expected = by_hand.network(), by_hand.network()
    monkeypatch.setattr(lightning_trainer.Classifier, "on_train_epoch_end", lambda self: seen.append(weights(model)))
    swa = StochasticWeightAveraging(8.0, swa_epoch_start=2, annealing_epochs=1)
    fit(model, batches, max_epochs=3, callbacks=[swa])
    by_hand.train(expected, batches * 3)
    torch.testing.assert_close(seen[2], weights(expected), rtol=0, atol=0)
    assert len(seen) == 4


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_checkpoint_goes_on_to_the_same_numbers(tmp_path):
    model, batches = by_hand.network(), by_hand.batches()
    resumed, expected = by_hand.network(), copy.deepcopy(model)
    fit(model, batches, max_epochs=1).save_checkpoint(tmp_path / "saved.ckpt")
    fit(resumed, batches, resume=tmp_path / "saved.ckpt")
    by_hand.train(expected, batches * 2)
    by_hand.assert_same(resumed, expected)


def test_the_script(capsys):
    by_hand.run_as_script("lightning_trainer")
    before, after = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if line[:4] == "loss")
    assert after < 0.8 * before
