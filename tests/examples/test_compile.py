"""A compiled model trains as the same one that is not, over batches of two sizes."""

import copy

import by_hand
import pytest
import torch

compiled_loop = by_hand.example("compile")


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def batches_of_two_sizes(dtype=torch.float32):
    batches = by_hand.batches(dtype=dtype)
    images, labels = batches[-1]
    return [*batches[:-1], (images[:3], labels[:3])]


def test_it_equals_the_loop_by_hand():
    """The graph's kernels are those of autograd but for some sums' order, so not to the bit."""
    model, batches = by_hand.network(), batches_of_two_sizes()
    start, expected = copy.deepcopy(model), copy.deepcopy(model)
    optimizer = compiled_loop.train(model, batches, 2, backend="aot_eager")
    same = by_hand.train(expected, batches * 2)
    by_hand.assert_same(model, expected, rtol=1e-5)
    by_hand.assert_moved(model, start)
    assert optimizer.layer_stats().keys() == same.layer_stats().keys()


def test_it_equals_the_definition():
    model, batches = by_hand.network(torch.float64), batches_of_two_sizes(torch.float64)
    expected = copy.deepcopy(model)
    compiled_loop.train(model, batches, 2, backend="aot_eager")
    by_hand.train_by_definition(expected, batches * 2)
    by_hand.assert_same(model, expected, rtol=1e-9)


def test_without_a_backend_it_is_the_loop_by_hand():
    model, batches = by_hand.network(), batches_of_two_sizes()
    expected = copy.deepcopy(model)
    compiled_loop.train(model, batches, 2)
    by_hand.train(expected, batches * 2)
    by_hand.assert_same(model, expected)


def test_the_script(capsys):
    by_hand.run_as_script("compile")
    before, after = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert after < 0.9 * before
