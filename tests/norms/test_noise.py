"""The gradient noise scale against its definition, in loops of every kind."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import clars
from clars.norms.noise import estimates


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3)).to(dtype)


def batch(number, examples=12, dtype=torch.float64):
    made = torch.Generator().manual_seed(number)
    x = torch.randn(examples, 1, 6, 6, generator=made, dtype=torch.float64)
    return x.to(dtype), torch.randint(3, (examples,), generator=made)


def loss_of(model, x, y):
    return cross_entropy(model(x), y)


def layer_of(name):
    return name.partition(".")[0]


def terms(model, x, y):
    """By definition, per layer: unbiased estimates of the trace of the covariance, and of the squared mean."""
    each = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(loss_of(model, x[i : i + 1], y[i : i + 1]), list(model.parameters()))
        each.append(dict(zip(dict(model.named_parameters()), gradients)))
    found = {}
    for layer in ("0", "3"):
        rows = torch.stack(
            [torch.cat([g.flatten() for name, g in one.items() if layer_of(name) == layer]) for one in each]
        )
        trace = rows.var(0).sum()  # of n - 1
        found[layer] = (trace, rows.mean(0).square().sum() - trace / len(rows))
    return found


def smoothed(observations, smoothing=0.95):
    """Averages of both terms over the steps, as far as their quotient is concerned."""
    total = {}
    for found in observations:
        for layer, pair in found.items():
            old = total.get(layer, (0.0, 0.0))
            total[layer] = tuple(smoothing * a + (1 - smoothing) * float(b) for a, b in zip(old, pair))
    return total


def assert_is(noise, expected, rel=1e-9):
    expected = {layer: tuple(map(float, pair)) for layer, pair in expected.items()}
    for layer, (trace, square) in expected.items():
        assert noise.layers()[layer] == pytest.approx(trace / square if square > 0 else math.inf, rel=rel)
    trace, square = (sum(terms) for terms in zip(*expected.values()))
    assert noise.batch_size() == pytest.approx(trace / square if square > 0 else math.inf, rel=rel)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_beside_any_optimizer(make):
    model, observations = network(), []
    optimizer, noise = make(model.parameters(), lr=0.01), clars.NoiseScale(model)
    assert noise.batch_size() is None and noise.layers() == {}
    for step in range(4):
        optimizer.zero_grad()
        with torch.no_grad():
            twin = network()
            twin.load_state_dict(model.state_dict())
        observations.append(terms(twin, *batch(step)))
        loss_of(model, *batch(step)).backward()
        noise.update()
        optimizer.step()
    assert_is(noise, smoothed(observations))


def observed(model, rows, **options):
    """What one noise scale finds of a gradient that adds up over parts of a batch, with a call after each."""
    noise = clars.NoiseScale(model, **options)
    x, y = batch(0)
    model.zero_grad()
    for part in rows:
        (loss_of(model, x[part], y[part]) * (part.stop - part.start) / len(x)).backward()
        noise.update()
    noise.remove()
    return noise


def test_a_gradient_that_adds_up_counts_once():
    whole = terms(network(), *batch(0))
    for rows in ([slice(0, 12)], [slice(0, 6), slice(6, 12)], [slice(0, 2), slice(2, 7), slice(7, 12)]):
        noise = observed(network(), rows)
        assert_is(noise, whole)
        weight = {row[2] for row in noise.state_dict()["layers"].values()}
        assert list(weight) == [pytest.approx(0.05)]


def test_two_calls_for_one_gradient_count_once():
    model = network()
    noise = clars.NoiseScale(model)
    loss_of(model, *batch(0)).backward()
    noise.update()
    first = noise.state_dict()
    noise.update()
    assert noise.state_dict() == first


@pytest.mark.parametrize("set_to_none", [True, False])
def test_batches_of_one_size_count_each(set_to_none):
    model = network()
    noise = clars.NoiseScale(model, smoothing=0.5)
    for step in range(3):
        model.zero_grad(set_to_none)
        loss_of(model, *batch(step)).backward()
        noise.update()
    assert_is(noise, smoothed([terms(network(), *batch(step)) for step in range(3)], 0.5))


def test_batches_that_grow_count_each():
    """A larger batch is no more of the gradient before it, which was cleared."""
    model = network()
    noise = clars.NoiseScale(model, smoothing=0.5)
    for examples in (6, 8, 12):
        model.zero_grad()
        loss_of(model, *batch(0, examples)).backward()
        noise.update()
    assert_is(noise, smoothed([terms(network(), *batch(0, examples)) for examples in (6, 8, 12)], 0.5))


def test_many_weights_lose_no_digits():
    """||G||^2 is a small difference of sums over 4 million numbers in float32."""
    torch.manual_seed(0)
    model = nn.Linear(2000, 2000, bias=False)
    noise = clars.NoiseScale(model)
    x, gy = torch.randn(4, 2000) + 0.3, torch.randn(4, 2000) + 0.3
    (model(x) * gy).sum().backward()
    noise.update()
    squares = (x.double().square().sum(1) * gy.double().square().sum(1)).sum()
    whole = (gy.double().T @ x.double()).square().sum()
    trace, true_square = estimates(float(whole), float(squares), 4, 4)
    assert noise.batch_size() == pytest.approx(trace / true_square, rel=1e-3)


def test_gradients_zeroed_in_place_leave_no_growing_list():
    model = nn.Linear(3, 2)
    noise = clars.NoiseScale(model)
    for _ in range(500):
        model.zero_grad(set_to_none=False)
        model(torch.randn(4, 3)).sum().backward()
    (accumulator,) = noise.norms._accumulators.values()
    assert len(accumulator.entries) <= 201
    noise.update()
    assert noise.batch_size() is not None


@pytest.mark.parametrize("group", [2, 5])
def test_groups_tell_it_too(group):
    """The mean over many shuffles of the estimates is that of single examples: both are unbiased."""
    model = network()
    x, y = batch(0)
    single = sum(trace for trace, _ in terms(model, x, y).values())
    found = []
    for number in range(60):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(number))
        noise = clars.NoiseScale(model, estimator="group", group=group)
        model.zero_grad()
        loss_of(model, x[order], y[order]).backward()
        noise.update()
        found.append(sum(row[0] / row[2] for row in noise.state_dict()["layers"].values()))
    error = torch.tensor(found).std() / len(found) ** 0.5
    assert abs(torch.tensor(found).mean() - single) < 4 * error


def test_with_the_norms_of_an_optimizer():
    model = network()
    optimizer = clars.CLARS(model, lr=1e-3)
    noise = clars.NoiseScale(model, optimizer.norms)
    loss_of(model, *batch(0)).backward()
    noise.update()
    optimizer.step()
    stats = optimizer.layer_stats()
    for layer, value in noise.layers().items():
        assert value == pytest.approx(stats[layer].noise_scale, rel=1e-9)
    noise.remove()
    model.zero_grad()
    loss_of(model, *batch(1)).backward()
    optimizer.step()  # whose tracker is still there


def test_a_loss_scale_and_autocast_change_nothing_but_rounding():
    model, x, y = network(torch.float32), *batch(0, dtype=torch.float32)
    noise = clars.NoiseScale(model)
    (1024 * loss_of(model, x, y)).backward()
    noise.update()
    assert_is(noise, terms(network(), x.double(), y), rel=1e-4)
    model.zero_grad()
    noise = clars.NoiseScale(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, x, y)
    loss.backward()
    noise.update()
    assert_is(noise, terms(network(), x.double(), y), rel=0.1)


def test_of_a_compiled_model():
    model = network()
    noise = clars.NoiseScale(model)
    compiled, observations = torch.compile(model, backend="aot_eager"), []
    for step in range(3):
        model.zero_grad()
        loss_of(compiled, *batch(step)).backward()
        noise.update()
        noise.update()
        observations.append(terms(network(), *batch(step)))
    assert_is(noise, smoothed(observations))


def test_one_example_is_no_estimate():
    model = network()
    noise = clars.NoiseScale(model)
    for _ in range(2):
        model.zero_grad()
        loss_of(model, *batch(0, 1)).backward()
        noise.update()
    assert noise.batch_size() is None
    assert noise.layers() == {"0": None, "3": None}


def test_one_group_is_no_estimate():
    model = network()
    noise = clars.NoiseScale(model, estimator="group", group=12)
    loss_of(model, *batch(0)).backward()
    noise.update()
    assert noise.batch_size() is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_out(wrong):
    model = network()
    noise = clars.NoiseScale(model)
    for step, factor in enumerate([1.0, wrong, 1.0]):
        model.zero_grad()
        (factor * loss_of(model, *batch(step))).backward()
        noise.update()
    assert_is(noise, smoothed([terms(network(), *batch(step)) for step in (0, 2)]))


def test_what_only_noise_is_has_no_finite_scale():
    model = nn.Linear(2, 1, bias=False).double()
    noise = clars.NoiseScale(model)
    x = torch.tensor([[1.0, 2.0], [-1.0, -1.9]]).double()
    model(x).mean().backward()
    noise.update()
    assert noise.batch_size() == math.inf


def test_goes_on_from_its_state():
    model, observations = network(), []
    noise = clars.NoiseScale(model)
    for step in range(4):
        if step == 2:
            state = noise.state_dict()
            noise = clars.NoiseScale(model)
            noise.load_state_dict(state)
        model.zero_grad()
        loss_of(model, *batch(step)).backward()
        noise.update()
        observations.append(terms(network(), *batch(step)))
    assert_is(noise, smoothed(observations))
    model.float()
    model.zero_grad()
    loss_of(model, *batch(4, dtype=torch.float32)).backward()
    noise.update()
    with pytest.raises(ValueError, match="of other layers"):
        clars.NoiseScale(nn.Linear(2, 2)).load_state_dict(state)


def test_a_loop_without_backward_is_told_so():
    model = network()
    noise = clars.NoiseScale(model)
    with pytest.raises(ValueError, match=r"without a backward pass.*loss.backward\(\)"):
        noise.update()
    loss_of(model, *batch(0)).backward()
    noise.update()
    model.zero_grad()
    with pytest.raises(ValueError, match="without a backward pass"):
        noise.update()


def test_after_remove_what_was_found_stays():
    model = network()
    forward = model.forward
    noise = clars.NoiseScale(model)
    loss_of(model, *batch(0)).backward()
    noise.update()
    found = noise.batch_size()
    noise.remove()
    assert model.forward == forward
    with pytest.raises(ValueError, match=r"after remove\(\)"):
        noise.update()
    assert noise.batch_size() == found


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=f"smoothing={smoothing!r}"):
        clars.NoiseScale(network(), smoothing=smoothing)


def test_norms_that_are_given_have_an_estimator_already():
    model = network()
    with pytest.raises(ValueError, match="belong to the ExampleNorms given as norms"):
        clars.NoiseScale(model, clars.ExampleNorms(model), estimator="group")


def test_the_formula_is_unbiased():
    """Over all batches of three of five examples, the estimates' means are the population's own."""
    from itertools import permutations

    gradients = torch.randn(5, 4, dtype=torch.float64)
    mean = gradients.mean(0)
    found = []
    for chosen in permutations(range(5), 3):
        parts = gradients[list(chosen)] / 3
        groups = torch.stack([parts[:2].sum(0), parts[2]])
        found.append(estimates(parts.sum(0).square().sum(), groups.square().sum(), 3, 4 + 1))
    trace, square = (torch.stack(each).mean() for each in zip(*found))
    covariance = gradients.var(0).sum()  # drawing without replacement
    torch.testing.assert_close(trace, covariance, rtol=1e-9, atol=0)
    torch.testing.assert_close(square, mean.square().sum() - covariance / 5, rtol=1e-9, atol=0)
