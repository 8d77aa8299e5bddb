"""A loop of plain accelerate equals the one that is written out."""

import copy

import by_hand
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, TensorDataset

accelerate_loop = by_hand.example("accelerate_loop")


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps one precision and one way of accumulating for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def loader(batches):
    images, labels = map(torch.cat, zip(*batches))
    return DataLoader(TensorDataset(images, labels), batch_size=len(batches[0][0]))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_it_equals_the_loop_by_hand(parts, clip, precision):
    model, batches = by_hand.network(), by_hand.batches()
    start, expected = copy.deepcopy(model), copy.deepcopy(model)
    options = {"gradient_accumulation_steps": parts, "mixed_precision": precision}
    accelerate_loop.train(model, loader(batches), 2, clip=clip, **options)
    by_hand.train(expected, batches * 2, parts=parts, clip=clip, bf16=precision == "bf16")
    by_hand.assert_same(model, expected)
    by_hand.assert_moved(model, start)


def test_it_equals_the_definition():
    model, batches = by_hand.network(torch.float64), by_hand.batches(dtype=torch.float64)
    expected = copy.deepcopy(model)
    accelerate_loop.train(model, loader(batches), 2, clip=0.1, gradient_accumulation_steps=2)
    by_hand.train_by_definition(expected, batches * 2, parts=2, clip=0.1)
    by_hand.assert_same(model, expected, rtol=1e-9)


def test_a_saved_state_goes_on_to_the_same_numbers(tmp_path):
    model, batches = by_hand.network(), by_hand.batches()
    resumed, expected = by_hand.network(), copy.deepcopy(model)
    accelerate_loop.train(model, loader(batches), 1, save=tmp_path / "state")
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerate_loop.train(resumed, loader(batches), 1, load=tmp_path / "state")
    by_hand.train(expected, batches * 2, clip=1.0)
    by_hand.assert_same(resumed, expected)


def test_the_script(capsys):
    by_hand.run_as_script("accelerate_loop")
    before, after = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines() if "loss" in line)
    assert after < 0.8 * before
