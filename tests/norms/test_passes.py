"""Backward passes through layers in C++: several at once, parts of a graph, and what is refused in their midst."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clars
from clars import native

pytestmark = pytest.mark.skipif(not native.load().loaded, reason=native.load().text)


def network(seed=0):
    torch.manual_seed(seed)
    convolutions = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.LayerNorm(8 * 25), nn.Linear(8 * 25, 4))


def images(n=6):
    return torch.randn(n, 3, 5, 5, generator=torch.Generator().manual_seed(n))


def squares_of(model, x):
    norms = clars.ExampleNorms(model)
    model(x).square().sum().backward()
    return norms.squares()


def test_two_models_in_one_backward_pass():
    one, other, x = network(1), network(2), images()
    expected = squares_of(one, x), squares_of(other, x)
    trackers = [clars.ExampleNorms(model) for model in (one, other)]
    for _ in range(2):
        for norms in trackers:
            norms.reset()
        (one(x).square().sum() + other(x).square().sum()).backward()
    for norms, squares in zip(trackers, expected):
        torch.testing.assert_close(norms.squares(), squares, rtol=1e-6, atol=0)


def test_backward_passes_at_the_same_time():
    models, x = [network(seed) for seed in range(3)], images()
    expected = [squares_of(model, x) for model in models]
    trackers = [clars.ExampleNorms(model) for model in models]

    def work(model, norms, squares):
        for _ in range(200):
            norms.reset()
            model(x).square().sum().backward()
            torch.testing.assert_close(norms.squares(), squares, rtol=1e-6, atol=0)
        done.append(model)

    done = []
    threads = [threading.Thread(target=work, args=each) for each in zip(models, trackers, expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3


class Twice(nn.Module):
    """A parameter in a layer in C++ and, before or after that, in an operation that Python measures."""

    def __init__(self, after):
        super().__init__()
        self.after, self.head = after, nn.Linear(8, 8)
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        if self.after:
            return self.head(F.layer_norm(x, (8,), self.weight, self.bias) * self.weight)
        return self.head(F.layer_norm(x * self.weight, (8,), self.weight, self.bias))


@pytest.mark.parametrize("after", [False, True])
def test_a_parameter_that_python_measures_too(after):
    """Both parts of an example's contribution are summed before the norm, at every step."""
    model, x = Twice(after), torch.randn(4, 8)
    expected = clars.oracle.example_norms(model, lambda model, x: model(x).square().sum(), x, reduction="sum")
    norms = clars.ExampleNorms(model)
    for _ in range(4):
        model.zero_grad()
        model(x).square().sum().backward()
        torch.testing.assert_close(norms.sums(), expected, rtol=1e-5, atol=0)


def test_rows_that_change_within_a_pass_are_refused():
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, y):
            return self.second(self.first(x).view(len(y), -1, 8))

    norms = clars.ExampleNorms(model := Folding())
    with pytest.raises(clars.UnsupportedLayerError, match=r"'second' sees rows of which it cannot be told"):
        model(torch.randn(8, 8), torch.randn(4)).square().sum().backward()
    assert norms.active


class Functional(nn.Module):
    def __init__(self, layers, function):
        super().__init__()
        self.layers, self.function = layers, function

    def forward(self, x):
        return self.function(self.layers, x)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x, both):
        return self.one(x) + self.other(x) if both else self.one(x)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_layer_that_a_later_pass_does_not_reach(cleared):
    """What was added stays as long as its gradient does."""
    norms = clars.ExampleNorms(model := Branches())
    model(torch.randn(4, 8), True).square().sum().backward()
    if cleared:
        model.zero_grad()
    model(torch.randn(4, 8), False).square().sum().backward()
    expected = {"one": 4} if cleared else {"one": 8, "other": 4}
    assert {name: len(squares) for name, squares in norms.squares().items()} == expected


def test_gradients_taken_part_by_part():
    """By torch.autograd.grad, so that no parameter has one: there is nothing that sums could belong to."""
    norms = clars.ExampleNorms(model := Functional(nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]), None))
    for part in (0, 1):
        model.function = lambda m, x, part=part: m[part](x)
        torch.autograd.grad(model(torch.randn(4, 8)).square().sum(), list(model.layers[part].parameters()))
    assert norms.squares() == {}


def test_a_second_pass_through_a_part_of_the_graph_is_refused():
    def both(m, x):
        hidden = m[0](x)
        return m[1](hidden), m[2](hidden)

    model = Functional(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), both)
    norms = clars.ExampleNorms(model)
    first, second = model(torch.randn(4, 8))
    first.square().sum().backward(retain_graph=True)
    with pytest.raises(clars.UnsupportedLayerError, match=r"'layers.0' is reached by a second backward pass"):
        second.square().sum().backward()
    assert norms.active


def test_what_was_added_for_a_tracker_that_is_gone_is_dropped():
    model, x = network(), images()
    expected = squares_of(model, x)
    gone = clars.ExampleNorms(model)
    model(x).square().sum().backward()
    del gone
    norms = clars.ExampleNorms(model)
    model(x).square().sum().backward()
    torch.testing.assert_close(norms.squares(), expected, rtol=1e-6, atol=0)
