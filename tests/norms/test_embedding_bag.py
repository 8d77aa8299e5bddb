"""Bags of lookups, against the definition and against one backward pass per example or group."""

import pytest
import torch
from conftest import assert_exact, backward_sums, squared_loss
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import clars

MODES = ("sum", "mean", "max")
BAGS = ([2, 4, 1, 3, 2, 5, 2], [1, 0, 4, 2, 0, 3, 6])  # sizes, of which some may be 0


def loss_of(y, *, examples):
    """A part of a mean over so many examples of something no layer is blind to."""
    return (y * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype) + y.square()).sum() / examples


def lookups(sizes, entries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    indices = [torch.randint(entries, (size,), generator=generator) for size in sizes]
    offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return torch.cat(indices), offsets, indices


def sums_one_by_one(table, bags, weights, group, **options):
    """S of a table, by plain embedding_bag, from a backward pass of each group of bags."""
    total = 0.0
    for first in range(0, len(bags), group):
        weight = table.detach().clone().requires_grad_()
        sizes = [len(bag) for bag in bags[first : first + group]]
        given = None if weights is None else torch.cat(weights[first : first + group])
        offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        indices = torch.cat(bags[first : first + group])
        if len(indices):
            y = F.embedding_bag(indices, weight, offsets, per_sample_weights=given, **options)
            loss_of(y, examples=len(bags)).backward()
            total += weight.grad.norm()
    return total


@given(st.integers(1, 6), st.integers(1, 6), st.integers(2, 5), st.sampled_from([None, 0, 1, -1]))
@pytest.mark.parametrize("mode", MODES)
def test_rows_by_definition(mode, batch, length, entries, padding_idx):
    """Few entries and many lookups: examples look the same row up several times."""
    model = nn.Sequential(nn.EmbeddingBag(entries, 3, mode=mode, padding_idx=padding_idx)).double()
    indices = torch.randint(entries, (batch, length))
    indices[0, 0] = 1 if padding_idx == 0 else 0  # something to be seen
    assert_exact(model, squared_loss, indices)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("sizes", BAGS)
@pytest.mark.parametrize("padding_idx", [None, 2, -1])
@pytest.mark.parametrize("mode", MODES)
def test_offsets(mode, padding_idx, sizes, group, memory):
    model = nn.EmbeddingBag(4, 5, mode=mode, padding_idx=padding_idx).double()
    indices, offsets, bags = lookups(sizes, 4)
    expected = sums_one_by_one(model.weight, bags, None, group, mode=mode, padding_idx=padding_idx)
    options = {"estimator": "group", "group": group} if group > 1 else {}
    options |= {"memory": memory, "batch": "offsets"}
    sums, _ = backward_sums(
        model, lambda model, *given: loss_of(model(*given), examples=7), indices, offsets, **options
    )
    torch.testing.assert_close(sums["(model)"], expected, rtol=1e-12, atol=0)


class Weighted(nn.Module):
    """Bags whose factors a layer computes from the features of their entries."""

    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(4, 5, mode="sum", padding_idx=1)
        self.factor = nn.Linear(6, 6)

    def forward(self, indices, features):
        return self.bag(indices, per_sample_weights=self.factor(features))


@pytest.mark.parametrize("group", [1, 3])
def test_factors_that_are_computed(group):
    """Gradients are those of the model without tracking, and the norms those of each example or group."""
    model = Weighted().double()
    indices, features = torch.randint(4, (7, 6)), torch.randn(7, 6, dtype=torch.double)

    def loss(model, *given):
        return loss_of(model(*given), examples=7)

    loss(model, indices, features).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = {"bag": 0.0, "factor": 0.0}
    for part in zip(indices.split(group), features.split(group)):
        model.zero_grad()
        loss(model, *part).backward()
        for name in expected:
            own = model.get_submodule(name).parameters()
            expected[name] += torch.cat([parameter.grad.flatten() for parameter in own]).norm()
    model.zero_grad()
    options = {"estimator": "group", "group": group} if group > 1 else {}
    sums, _ = backward_sums(model, loss, indices, features, **options)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-12, atol=1e-15)


class Click(nn.Module):
    """Bags beside features of each example, as models that recommend have them."""

    def __init__(self, **options):
        super().__init__()
        self.bag = nn.EmbeddingBag(4, 5, **options)
        self.dense = nn.Linear(3, 5)

    def forward(self, indices, offsets, features):
        return torch.relu_(self.bag(indices, offsets)) + self.dense(features)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_the_last_offset_and_a_function_in_place(mode, dtype, kind):
    model = Click(mode=mode, include_last_offset=True).to(dtype)
    indices, offsets, bags = lookups(BAGS[1], 4)
    features = torch.randn(7, 3, dtype=dtype)
    offsets = torch.cat((offsets, torch.tensor([len(indices)])))
    whole = indices.to(kind), offsets.to(kind), features
    expected = 0.0
    for bag, row in zip(bags, features):
        model.zero_grad()
        loss_of(model(bag, torch.tensor([0, len(bag)]), row.unsqueeze(0)), examples=7).backward()
        expected += model.bag.weight.grad.double().norm()
    model.zero_grad()
    sums, _ = backward_sums(model, lambda model, *given: loss_of(model(*given), examples=7), *whole, batch="features")
    torch.testing.assert_close(sums["bag"].double(), expected, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)


def test_blocks_of_the_batch():
    model = nn.EmbeddingBag(4, 5, mode="mean").double()
    indices = torch.randint(4, (6, 3))
    expected = sums_one_by_one(model.weight, list(indices), None, 1, mode="mean")
    norms, parts = clars.ExampleNorms(model, "subset", fraction=0.5), set()
    for _ in range(20):
        model.zero_grad()
        loss_of(model(indices), examples=6).backward()
        (squares,) = norms.squares().values()
        parts.add(squares.sqrt().sum().item())
    norms.remove()
    assert len(parts) == 2
    assert sum(parts) == pytest.approx(float(expected), rel=1e-12, abs=0)


@pytest.mark.parametrize("mode", MODES)
def test_max_norm(mode):
    model = nn.Sequential(nn.EmbeddingBag(4, 3, max_norm=1.0, mode=mode)).double()
    assert_exact(model, squared_loss, torch.randint(4, (3, 5)))


@pytest.mark.parametrize("mode", MODES)
def test_compiled(mode):
    torch._dynamo.reset()
    model, indices = nn.Sequential(nn.EmbeddingBag(4, 3, mode=mode), nn.Linear(3, 2)).double(), torch.randint(4, (6, 5))
    expected, _ = backward_sums(model, squared_loss, indices)
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    squared_loss(torch.compile(model, backend="aot_eager", fullgraph=True), indices).backward()
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-12, atol=0)
    torch._dynamo.reset()


def test_it_is_printed_while_it_is_watched():
    """It called itself for ever."""
    model = nn.Sequential(nn.EmbeddingBag(4, 3, mode="sum", padding_idx=1))
    before = repr(model)
    norms = clars.ExampleNorms(model)
    assert repr(model) == before
    norms.remove()


@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
def test_options_without_a_rule(option):
    model = nn.Sequential(nn.EmbeddingBag(3, 2, **{option: True}))
    _tracker = clars.ExampleNorms(model, uncovered="refuse")
    with pytest.raises(clars.UnsupportedLayerError, match=f"'0' uses {option}=True"):
        model(torch.tensor([[0, 1]]))


class Learned(nn.Module):
    """A factor for each lookup of the batch."""

    def __init__(self):
        super().__init__()
        self.bag, self.factors = nn.EmbeddingBag(4, 5, mode="sum"), nn.Parameter(torch.rand(2, 3))

    def forward(self, indices):
        return self.bag(indices, per_sample_weights=self.factors)


@pytest.mark.filterwarnings("ignore:No fast rule measures")
def test_factors_that_are_a_parameter():
    model, indices = Learned().double(), torch.randint(4, (2, 3))
    expected = clars.oracle.mask_norms(model, squared_loss, indices)
    sums, _ = backward_sums(model, squared_loss, indices)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)
    _tracker = clars.ExampleNorms(model, uncovered="refuse")
    with pytest.raises(clars.UnsupportedLayerError, match="'factors' uses its parameter as per_sample_weights"):
        model(indices)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((torch.tensor([0, 1]), None), "offsets has to be a 1D Tensor"),
        ((torch.tensor([[0, 1]]), torch.tensor([0])), "if input is 2D"),
        ((torch.tensor([[0, 1]]), None, torch.tensor([[1.0, 2.0]])), "only supported for mode='sum'"),
    ],
)
def test_what_torch_refuses(given, told):
    _tracker = clars.ExampleNorms(model := nn.EmbeddingBag(3, 2))
    with pytest.raises((ValueError, NotImplementedError), match=told):
        model(*given)
