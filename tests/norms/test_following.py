"""S belongs to what is in `.grad`: a table of ways in which gradients come, by ways in which they go."""

import copy
import math

import pytest
import torch
from conftest import squared_loss
from following import DROPS, KEPT
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clars


class Network(nn.Module):
    """Layers with compiled functions, without, and a loose parameter."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv1d(6, 6, 1))
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 3)
        self.recompute = None

    def forward(self, x):
        x = self.body[:3](x).flatten(2)
        x = self.body[3](x) if self.recompute is None else checkpoint(self.body[3], x, use_reentrant=self.recompute)
        return self.head(x.mean(2) * self.scale)


def images(seed):
    return torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def backward(model, loss):
    loss().backward()


def in_two_parts(model, loss):
    (0.5 * loss()).backward()
    (0.5 * loss()).backward()


def through_a_checkpoint(reentrant):
    def produce(model, loss):
        model.recompute = reentrant
        loss().backward()
        model.recompute = None

    return produce


def with_the_graph_kept(model, loss):
    loss().backward(retain_graph=True)


def with_a_graph_of_its_own(model, loss):
    loss().backward(create_graph=True)


def for_the_input_alone(model, loss):
    x = images(0).requires_grad_()
    torch.autograd.grad(squared_loss(model, x), x)


def for_the_input_by_backward(model, loss):
    x = images(0).requires_grad_()
    squared_loss(model, x).backward(inputs=[x])


def taken_away(model, loss):
    torch.autograd.grad(loss(), list(model.parameters()))


ARRIVE = {
    "backward": backward,
    "two micro-batches": in_two_parts,
    "checkpoint": through_a_checkpoint(False),
    "reentrant checkpoint": through_a_checkpoint(True),
    "retain_graph": with_the_graph_kept,
    "create_graph": with_a_graph_of_its_own,
}
NEVER = {
    "autograd.grad of the input": for_the_input_alone,
    "backward(inputs=[input])": for_the_input_by_backward,
    "autograd.grad of the parameters": taken_away,
}


def sums_of(model, seed):
    norms = clars.ExampleNorms(model)
    squared_loss(model, images(seed)).backward()
    found = norms.sums()
    norms.remove()
    model.zero_grad()
    return found


@pytest.fixture(scope="module")
def expected():
    torch.manual_seed(0)
    model = Network()
    return copy.deepcopy(model), [sums_of(model, seed) for seed in range(2)]


def check(found, first, second, kept):
    for name, value in found.items():
        wanted = first[name] + second[name] if kept else second[name]
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True", "ignore:.*requires_grad=True. Gradients")
@pytest.mark.parametrize("drop", DROPS)
@pytest.mark.parametrize("produce", {**ARRIVE, **NEVER})
def test_between_two_backward_passes(produce, drop, expected):
    model, (first, second) = copy.deepcopy(expected[0]), expected[1]
    norms = clars.ExampleNorms(model)
    {**ARRIVE, **NEVER}[produce](model, lambda: squared_loss(model, images(0)))
    DROPS[drop](model)
    squared_loss(model, images(1)).backward()
    check(norms.sums(), first, second, produce in ARRIVE and drop in KEPT)


@pytest.mark.parametrize("drop", DROPS)
def test_after_the_last_backward_pass(drop, expected):
    model, (first, _) = copy.deepcopy(expected[0]), expected[1]
    norms = clars.ExampleNorms(model)
    squared_loss(model, images(0)).backward()
    DROPS[drop](model)
    nothing = dict.fromkeys(first, torch.tensor(0.0))
    check(norms.sums(), first, nothing, drop in KEPT)
    assert bool(norms.squares()) == (drop in KEPT)


@pytest.mark.parametrize("drop", sorted(set(DROPS) - KEPT))
def test_a_batch_that_is_no_number_leaves_nothing_behind(drop, expected):
    """It made the weights undefined at the next step."""
    model = copy.deepcopy(expected[0])
    optimizer = clars.CLARS(model, lr=1.0)
    (squared_loss(model, images(0)) * math.nan).backward()
    DROPS[drop](model)
    if drop != "grad.mul_(0)":  # which leaves what is no number
        squared_loss(model, images(1)).backward()
        optimizer.step()
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("clear", [True, False])
def test_the_optimizers_own_zero_grad(clear, expected):
    model, (_, second) = copy.deepcopy(expected[0]), expected[1]
    optimizer = clars.CLARS(model, lr=1.0)
    squared_loss(model, images(0)).backward()
    optimizer.zero_grad(set_to_none=clear)
    squared_loss(model, images(1)).backward()
    optimizer.step()
    for name, row in optimizer.layer_stats().items():
        assert row.example_norm_sum == pytest.approx(float(second[name]), rel=1e-5)


def test_a_part_of_the_layers_is_dropped(expected):
    model, (first, second) = copy.deepcopy(expected[0]), expected[1]
    norms = clars.ExampleNorms(model)
    squared_loss(model, images(0)).backward()
    model.head.weight.grad.zero_()
    model.head.bias.grad = None
    squared_loss(model, images(1)).backward()
    found = norms.sums()
    for name in found:
        wanted = second[name] if name == "head" else first[name] + second[name]
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("asked", ["head.weight", "body.0.weight", "scale", "body.3.bias"])
def test_a_pass_for_one_parameter(asked, expected):
    """Of a layer's parameters the norm is that of those that the pass was asked for."""
    model = copy.deepcopy(expected[0])
    parameter = model.get_parameter(asked)
    by_parameter = clars.ExampleNorms(model, layers=clars.layers(model, "parameter"))
    squared_loss(model, images(0)).backward()
    alone = by_parameter.sums()[asked]
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    squared_loss(model, images(0)).backward(inputs=[parameter])
    found = {name: value for name, value in norms.sums().items() if value}
    assert list(found) == [asked if asked == "scale" else asked.rpartition(".")[0]]
    torch.testing.assert_close(next(iter(found.values())), alone, rtol=1e-5, atol=0)


def test_a_graph_that_a_backward_pass_follows(expected):
    """Of adversarial examples, saliency: gradients of the input first, by the same graph."""
    model, (first, _) = copy.deepcopy(expected[0]), expected[1]
    norms = clars.ExampleNorms(model)
    x = images(0).requires_grad_()
    loss = squared_loss(model, x)
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    check(norms.sums(), first, dict.fromkeys(first, 0.0), True)


def test_a_second_pass_after_the_first_was_dropped(expected):
    model, (first, _) = copy.deepcopy(expected[0]), expected[1]
    norms = clars.ExampleNorms(model)
    loss = squared_loss(model, images(0))
    loss.backward(retain_graph=True)
    model.zero_grad()
    loss.backward()
    check(norms.sums(), first, dict.fromkeys(first, 0.0), True)


def test_gradients_set_by_hand_are_refused(expected):
    model = copy.deepcopy(expected[0])
    optimizer = clars.CLARS(model, lr=1.0)
    gradients = torch.autograd.grad(squared_loss(model, images(0)), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients):
        parameter.grad = gradient
    with pytest.raises(clars.UserError, match=r"set by hand, taken by torch\.autograd\.grad"):
        optimizer.step()


def test_a_layer_that_is_bypassed_after_it_was_measured(expected):
    """Its rate was that of LARS, as it had been measured once."""
    model = copy.deepcopy(expected[0])
    optimizer = clars.CLARS(model, lr=1e-3)
    for bypassed in (False, True):
        optimizer.zero_grad()
        features = model.body[:3](images(0)).flatten(2).mean(2)
        weight = F.normalize(model.head.weight) if bypassed else None
        y = F.linear(features, weight) if bypassed else model.head(features)
        y.square().sum().backward()
        if bypassed:
            with pytest.raises(clars.UnsupportedLayerError, match="'head' has a gradient but no per-example norms"):
                optimizer.step()
        else:
            optimizer.step()


def test_zero_gradients_step_without_a_backward_pass(expected):
    """So torch.distributed.checkpoint makes the state of an optimizer that has taken no step."""
    model = copy.deepcopy(expected[0])
    optimizer = clars.CLARS(model, lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("drop", DROPS)
def test_of_a_compiled_model(drop, expected):
    model, (first, second) = copy.deepcopy(expected[0]), expected[1]
    norms = clars.ExampleNorms(model)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        model.zero_grad()
        squared_loss(compiled, images(0)).backward()
        DROPS[drop](model)
        squared_loss(compiled, images(1)).backward()
        check(norms.sums(), first, second, drop in KEPT)
    torch._dynamo.reset()
