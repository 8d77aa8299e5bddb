"""The oracles against closed forms, against each other, and where they cannot tell."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from losses import squared_loss
from torch import nn
from torch.nn import functional as F

from clars import oracle

B = 4


def assert_same(found, expected, rtol=1e-12):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


class Windows(nn.Module):
    """Pictures cut into windows, which a linear layer sees as rows of dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        windows = self.inside(x.reshape(-1, 2, 6)).tanh()  # [B * 3, 2, 6]
        return self.head(windows.reshape(len(x), -1, 5).mean(1))


class Twice(nn.Module):
    """One layer called twice, the second time with what the first has returned, and a bias for both."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.again(self.norm(self.again(x)).tanh())))


class Tied(nn.Module):
    """An embedding whose weight is that of the layer after it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.inner = nn.Linear(5, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens):
        return self.out(self.inner(self.embedding(tokens)).tanh()).mean(1)


class Standardised(nn.Linear):
    """A linear layer by an expression of its weight."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, weight / weight.norm(dim=1, keepdim=True), self.bias)


class Scaled(nn.Module):
    """A loose parameter beside a normalisation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(6))
        self.linear = nn.Linear(6, 6)
        self.norm = norm

    def forward(self, x):
        return self.norm(self.linear(x) * self.scale)


def gradients_of(model, loss_fn, *batch):
    """The gradients of the layers, by autograd on the whole batch."""
    gradients = torch.autograd.grad(loss_fn(model, *batch), list(model.parameters()))
    return dict(zip([name for name, _ in model.named_parameters()], gradients))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("group", [1, 3])
def test_a_linear_layer_in_closed_form(reduction, group):
    """The gradient of w . x_i + b is (x_i, 1)."""
    x = torch.randn(B, 6, dtype=torch.double)
    model = nn.Linear(6, 1).double()
    parts = [F.pad(part.sum(0), (0, 1), value=len(part)).norm() for part in x.split(group)]
    expected = {"(model)": sum(parts) / (B if reduction == "mean" else 1)}

    def loss(model, x):
        return getattr(model(x), reduction)()

    assert_same(oracle.example_norms(model, loss, x, group=group, reduction=reduction), expected)
    assert_same(oracle.mask_norms(model, loss, x, group=group), expected)


@pytest.mark.parametrize("by", ["module", "parameter"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    "network, rows",
    [(Windows, (6, 6)), (Twice, (6,)), (lambda: Scaled(nn.LayerNorm(6)), (6,)), (lambda: Standardised(6, 4), (6,))],
    ids=["windows", "twice", "loose", "expression"],
)
def test_both_agree(network, rows, by, group):
    model, x = network().double(), torch.randn(B, *rows, dtype=torch.double)
    expected = oracle.example_norms(model, squared_loss, x, by=by, group=group)
    assert all(value > 0 for value in expected.values())
    assert_same(oracle.mask_norms(model, squared_loss, x, by=by, group=group), expected)


@pytest.mark.parametrize("network", [Windows, Twice], ids=["windows", "twice"])
def test_each_agrees_with_vmap(network):
    model = network().double()
    x, y = torch.randn(B, 6, 6, dtype=torch.double), torch.arange(B) % 3
    x = x if network is Windows else x[:, 0]

    def loss(model, x, y):
        return F.cross_entropy(model(x), y)

    expected = oracle.vmap_norms(model, F.cross_entropy, x, y)
    assert_same(oracle.example_norms(model, loss, x, y), expected)
    assert_same(oracle.mask_norms(model, loss, x, y), expected)


def test_a_tied_weight():
    """Its contributions in two modules are summed before the norm, and belong to the first."""
    model, tokens = Tied().double(), torch.randint(7, (B, 3))
    found = oracle.example_norms(model, squared_loss, tokens)
    assert list(found) == ["embedding", "inner"]
    assert_same(oracle.mask_norms(model, squared_loss, tokens), found)
    norms = [gradients_of(model, squared_loss, token)["embedding.weight"].norm() / B for token in tokens.split(1)]
    assert_same(found["embedding"], sum(norms))


def test_one_group_is_the_gradient_even_with_batch_statistics():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    x = torch.randn(B, 6, dtype=torch.double)
    gradients = gradients_of(model, squared_loss, x)
    expected = {name: value.norm() for name, value in gradients.items()}
    assert_same(oracle.mask_norms(model, squared_loss, x, by="parameter", group=B), expected)


def test_batch_statistics_in_closed_form():
    """c_i of BatchNorm's weight and bias is sum over positions of (g x_hat, g) in row i of its output."""
    norm = nn.BatchNorm1d(5).double().train()
    x = torch.randn(B, 5, 7, dtype=torch.double)
    x_hat = (x - x.mean((0, 2), keepdim=True)) / (x.var((0, 2), unbiased=False, keepdim=True) + norm.eps).sqrt()
    slope = torch.linspace(0.5, 1.5, 5 * 7, dtype=torch.double).reshape(5, 7)  # of the loss's linear part
    gradient = (2 * (x_hat * norm.weight[:, None] + norm.bias[:, None]) + slope) / B
    parts = torch.cat([(gradient * x_hat).sum(2), gradient.sum(2)], 1).detach()
    assert_same(oracle.mask_norms(norm, squared_loss, x)["(model)"], parts.norm(dim=1).sum())


def test_what_one_cannot_tell_under_batch_statistics():
    model, x = Scaled(nn.BatchNorm1d(6)).double().train(), torch.randn(B, 6, dtype=torch.double)
    with pytest.raises(ValueError, match=r"'scale' belongs to a Scaled that holds batch statistics"):
        oracle.mask_norms(model, squared_loss, x)
    told = oracle.mask_norms(model, squared_loss, x, partial=True)
    assert list(told) == ["linear", "norm"]
    model.scale.requires_grad_(False)
    assert_same(told, oracle.mask_norms(model, squared_loss, x))


def test_rows_that_are_no_multiple():
    """As where examples do not come first."""
    model = nn.Linear(6, 2)
    with pytest.raises(ValueError, match=r"'\(model\)' belongs to a Linear whose output \[6, 2\] .* the 4 examples"):
        oracle.mask_norms(model, lambda model, x: squared_loss(model, torch.cat([x, x[:2]])), torch.randn(B, 6))


def test_uses_that_no_forward_holds():
    model = Twice()
    with pytest.raises(ValueError, match="'head' is used elsewhere than in its module's forward"):
        oracle.mask_norms(model, lambda model, x: squared_loss(model, x) + model.head.weight.sum(), torch.randn(B, 6))


def test_modules_that_return_no_tensor_or_are_given_none():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(B, 6))

        def forward(self):
            return self.table * 2

    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias, self.rnn = Table(), nn.RNN(6, 3, batch_first=True)

        def forward(self, x):
            return self.rnn((x + self.bias())[:, None])[0]

    x = torch.randn(B, 6)
    with pytest.raises(ValueError, match=r"'bias.table' belongs to a Table that is called without a tensor"):
        oracle.mask_norms(Given(), squared_loss, x)
    assert not oracle.mask_norms(Given(), squared_loss, x, partial=True)


def test_an_error_in_the_forward_leaves_the_model_as_it_was():
    model = Twice()
    before = dict(model.named_parameters())
    with pytest.raises(RuntimeError):
        oracle.mask_norms(model, squared_loss, torch.randn(B, 7))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


Pair = namedtuple("Pair", ["x", "rest"])


@dataclass(frozen=True)
class Example:
    x: torch.Tensor
    scale: torch.Tensor


@pytest.mark.parametrize(
    "wrap, x_of",
    [
        (lambda x: {"x": x, "scale": torch.tensor(2.0)}, lambda batch: batch["x"]),
        (lambda x: OrderedDict(inner=[x, "text"]), lambda batch: batch["inner"][0]),
        (lambda x: Pair(x, torch.ones(B + 1)), lambda batch: batch.x),
        (lambda x: Example(x, torch.ones(1)), lambda batch: batch.x),
    ],
    ids=["dict", "list", "named tuple", "dataclass"],
)
def test_batches_of_many_kinds(wrap, x_of):
    """Tensors of B rows are cut wherever they are; what holds them, and all else, stays what it is."""
    model, x = Twice().double(), torch.randn(B, 6, dtype=torch.double)
    whole, seen = wrap(x), []

    def loss(model, batch):
        seen.append(batch)
        return squared_loss(model, x_of(batch))

    assert_same(oracle.example_norms(model, loss, whole), oracle.example_norms(model, squared_loss, x))
    assert [len(x_of(batch)) for batch in seen] == [1] * B
    assert all(type(batch) is type(whole) for batch in seen)
    assert x_of(whole) is x


def test_buffers_stay():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).double().eval()
    model[1].register_buffer("calls", torch.zeros(()))
    model[1].register_forward_hook(lambda module, args, output: module.calls.add_(1) and None)
    oracle.example_norms(model, squared_loss, torch.randn(B, 6, dtype=torch.double))
    assert model[1].calls == 0


def test_mistakes():
    model = nn.Linear(6, 1)
    with pytest.raises(ValueError, match="reduction='none' is not known"):
        oracle.example_norms(model, squared_loss, torch.randn(B, 6), reduction="none")
    with pytest.raises(ValueError, match="no tensor with dimensions"):
        oracle.example_norms(model, lambda model: model.weight.sum())
