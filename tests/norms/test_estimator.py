"""Which examples are measured, how much memory it takes, and how the method is chosen."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clars
from clars.norms.estimator import Estimator
from clars.norms.methods import METHODS
from clars.norms.methods.chooser import Chooser, cheapest
from clars.norms.methods.sizes import Sizes
from clars.norms.plan import plan

METHOD = {method.name: method for method in METHODS}


def loss_of(model, x, y):
    return F.cross_entropy(model(x), y)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8),
        nn.Flatten(), nn.LayerNorm(8 * 16), nn.Linear(8 * 16, 4),
    )  # fmt: skip


def backward(model, norms, examples=10):
    torch.manual_seed(1)
    x, y = torch.randn(examples, 3, 6, 6), torch.randint(4, (examples,))
    model.zero_grad()
    loss_of(model, x, y).backward()
    return norms.totals()


@pytest.mark.parametrize("examples", [10, 8, 3])
def test_the_mean_over_all_draws_is_the_exact_sum(examples):
    """Unbiased, also where the blocks are uneven and where there are fewer examples than blocks."""
    model = network()
    exact = backward(model, norms := clars.ExampleNorms(model), examples)
    norms.remove()
    norms = clars.ExampleNorms(model, "subset", fraction=1 / 4)
    blocks = min(4, examples)
    means = {name: torch.zeros(4) for name in exact}
    for block in range(blocks):
        norms.estimator._random.randrange = lambda count, block=block: block
        norms.reset()
        for name, total in backward(model, norms, examples).items():
            means[name] += total / blocks
    for name, mean in means.items():
        torch.testing.assert_close(mean, exact[name], rtol=1e-5, atol=0)


def test_gradients_are_those_of_the_whole_batch():
    model = network()
    backward(model, norms := clars.ExampleNorms(model))
    exact = [parameter.grad.clone() for parameter in model.parameters()]
    norms.remove()
    kept = clars.ExampleNorms(model, "subset", fraction=0.2)
    backward(model, kept)
    for parameter, gradient in zip(model.parameters(), exact):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


def test_every_block_is_drawn_and_the_same_for_all_layers():
    estimator = Estimator("subset", None, seed=0)
    drawn = [estimator.draw(64)[0].rows.start for _ in range(400)]
    assert set(drawn) == set(range(0, 64, 8))
    assert all(drawn.count(start) > 25 for start in set(drawn))  # 50 expected
    model = network()
    norms = clars.ExampleNorms(model, "subset", fraction=0.5)
    for _ in range(4):
        norms.reset()
        backward(model, norms)
        assert {len(squares) for squares in norms.squares().values()} == {5}


def test_of_a_part_fewer_pairs_of_positions_are_counted():
    """So that the Gram form is taken for a part where it would be too dear for the whole."""
    whole = Sizes(
        examples=8, positions=196, inputs=1152, outputs=128, channels=128, input_size=(14, 14), device="cpu",
        dtype=torch.float32, threads=1, kernel=(3, 3), stride=(1, 1), native=True,
    )  # fmt: skip
    part = replace(whole, blocks=8)
    beside = [METHOD["gram"].operations(sizes) - 1 for sizes in (part, whole)]
    assert beside[0] * 8 == pytest.approx(beside[1])
    among = [METHOD["each"], METHOD["gram"]]
    assert [cheapest(sizes, among).name for sizes in (whole, part)] == ["each", "gram"]


def test_draws_follow_their_own_seed_and_leave_torch_alone():
    state = torch.get_rng_state()
    first, second = (Estimator("subset", 1 / 3, seed=7) for _ in range(2))
    rows = [first.draw(30)[0].rows for _ in range(20)]
    assert len({row.start for row in rows}) == 3
    assert rows == [second.draw(30)[0].rows for _ in range(20)]
    first.seed(7)
    assert rows == [first.draw(30)[0].rows for _ in range(20)]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_optimizer_passes_the_estimator_on():
    model = network()
    optimizer = clars.CLARS(model, lr=1.0, estimator="subset", fraction=0.5)
    assert optimizer.norms.estimator.blocks == 2
    with pytest.raises(ValueError, match="belong to the ExampleNorms"):
        clars.CLARS(model, lr=1.0, norms=clars.ExampleNorms(model), estimator="subset")


@pytest.mark.parametrize("fraction", [0.0, -1, 1.5])
def test_impossible_fractions(fraction):
    with pytest.raises(ValueError, match=r"fraction=.*above 0, up to 1"):
        clars.ExampleNorms(network(), "subset", fraction=fraction)


def test_a_fraction_without_effect_warns():
    with pytest.warns(UserWarning, match="fraction has no effect"):
        clars.ExampleNorms(network(), fraction=0.5)


def test_impossible_memory():
    with pytest.raises(ValueError, match=r"memory=0 is not a number of bytes"):
        clars.ExampleNorms(network(), memory=0)


def test_squares_are_those_of_each_example():
    model = network().eval()
    norms = clars.ExampleNorms(model)
    totals = backward(model, norms)
    for name, squares in norms.squares().items():
        assert squares.shape == (10,)
        torch.testing.assert_close(squares.sqrt().sum(), totals[name][0])


SIZES = Sizes(
    examples=8, positions=49, inputs=4608, outputs=512, channels=512, input_size=(7, 7), kernel=(3, 3), stride=(1, 1),
    device="cpu", dtype=torch.float32, threads=2,
)  # fmt: skip


def test_memory_rules_methods_out_and_cuts_pieces():
    least = METHOD["gram"].bytes(SIZES)
    allowed = [[each.name for each in Chooser(memory).allowed(SIZES)] for memory in (None, 4 * least, 1)]
    assert allowed == [["grouped", "matrix", "gram"], ["gram"], ["gram"]]  # where none fits: the one that needs least
    pieces = METHOD["gram"].pieces(SIZES, 3 * least)
    assert [piece.stop - piece.start for piece in pieces] == [3, 3, 2]


def test_memory_of_inner_products_with_a_stride():
    """Of outputs, of the positions of a phase, of these summed by rows; and of the phase itself."""
    sizes = replace(SIZES, positions=32, channels=64, inputs=576, input_size=(1, 63), stride=(2, 2), native=True)
    assert METHOD["gram"].bytes(sizes) == 4 * (32**2 + 32**2 + 32**2 + 64 * 32)


def test_a_bound_on_memory_changes_no_norm():
    model = network()
    plain = backward(model, norms := clars.ExampleNorms(model))
    norms.remove()
    bounded = backward(model, clars.ExampleNorms(model, memory=2**10))
    for name, total in plain.items():
        torch.testing.assert_close(bounded[name], total, rtol=1e-5, atol=0)


def test_timed_once_per_shape():
    model, chosen = network(), []
    norms = clars.ExampleNorms(model, timed=True)
    chooser = norms.estimator.chooser
    norms.estimator.report_to(lambda layer, sizes, operands, method: chosen.append((sizes, operands)))
    first = backward(model, norms)
    several = [call for call in chosen if len(chooser.allowed(call[0])) > 1]
    seconds = [chooser.seconds(*call, chooser.allowed(call[0])) for call in several]
    assert seconds and all(len(each) > 1 for each in seconds)
    norms.reset()
    second = backward(model, norms)
    assert [chooser.seconds(*call, chooser.allowed(call[0])) for call in several] == seconds
    for name, total in first.items():
        torch.testing.assert_close(second[name], total)


def test_the_plan_names_each_layer_and_its_cheapest_method():
    model = network()
    x, y = torch.randn(4, 3, 6, 6), torch.randint(4, (4,))
    choices, _ = plan(model, loss_of, x, y, time=True)
    assert [choice.layer for choice in choices] == ["0", "3", "7"]
    for choice in choices:
        assert choice.method == min(choice.seconds, key=choice.seconds.__getitem__)
    assert all(parameter.grad is None for parameter in model.parameters())
