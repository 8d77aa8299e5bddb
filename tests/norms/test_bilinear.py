"""Bilinear layers, against the definition and against one backward pass per example or group."""

import pytest
import torch
from conftest import backward_sums
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import clars
from clars.native import where


class Pair(nn.Module):
    """Two layers whose outputs meet in a bilinear one."""

    def __init__(self, d, e, outputs, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(2, d), nn.Linear(2, e)
        self.meet = nn.Bilinear(d, e, outputs, bias=bias)

    def forward(self, x):
        return self.meet(torch.tanh(self.a(x)), self.b(x))


def loss_of(model, x, examples):
    y = model(x).flatten(1)
    return (y * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype) + y.square()).sum() / examples


def sums_one_by_one(model, x, group=1):
    totals = dict.fromkeys([layer.name for layer in clars.layers(model)], 0.0)
    for part in x.split(group):
        model.zero_grad()
        loss_of(model, part, len(x)).backward()
        for layer in clars.layers(model):
            totals[layer.name] += torch.cat([each.grad.flatten() for each in layer.parameters.values()]).norm()
    model.zero_grad()
    return totals


def assert_sums(model, x, rtol=1e-11, **options):
    """The sums of each example or group, and loss and gradients as they are without tracking."""
    plain = loss_of(model, x, len(x))
    plain.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = sums_one_by_one(model, x, options.get("group", 1))
    sums, loss = backward_sums(model, loss_of, x, len(x), **options)
    torch.testing.assert_close(loss, plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(sums, expected, rtol=rtol, atol=0)
    scale = max(float(gradient.norm()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=rtol, atol=1e-13 * scale)


@given(st.lists(st.integers(1, 4), max_size=2), *[st.integers(1, 5)] * 4, st.booleans())
@pytest.mark.parametrize("piece", ["all", "an example"])
def test_by_definition(piece, positions, batch, d, e, outputs, bias):
    with pytest.MonkeyPatch.context() as patch:
        if piece == "an example":
            patch.setitem(where.WORKING_SET, "cpu", 1)
        assert_sums(Pair(d, e, outputs, bias).double(), torch.randn(batch, *positions, 2, dtype=torch.double))


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("positions", [(), (3,), (4, 5)])
def test_groups_of_examples(positions, memory):
    x = torch.randn(7, *positions, 2, dtype=torch.double)
    assert_sums(Pair(4, 3, 5).double(), x, estimator="group", group=3, memory=memory)


@pytest.mark.parametrize("positions", [(), (6,)])
def test_single_precision(positions):
    """By the C++ kernels, where there are any."""
    model, x = Pair(8, 6, 5), torch.randn(7, *positions, 2)
    sums, _ = backward_sums(model, loss_of, x, 7)
    expected = sums_one_by_one(model.double(), x.double())
    torch.testing.assert_close({name: value.double() for name, value in sums.items()}, expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("memory", [None, 1])
def test_blocks_of_the_batch(memory):
    model, x = Pair(4, 3, 5).double(), torch.randn(6, 2, dtype=torch.double)
    expected = sums_one_by_one(model, x)["meet"]
    norms, parts = clars.ExampleNorms(model, "subset", fraction=0.5, memory=memory), set()
    for _ in range(20):
        model.zero_grad()
        loss_of(model, x, 6).backward()
        parts.add(norms.squares()["meet"].sqrt().sum().item())
    norms.remove()
    assert len(parts) == 2
    assert sum(parts) == pytest.approx(float(expected), rel=1e-12, abs=0)


def test_the_oracle_agrees():
    class Same(nn.Bilinear):
        def forward(self, x):
            return super().forward(x, x.flip(-1))

    model, x = nn.Sequential(Same(3, 3, 4)).double(), torch.randn(5, 2, 3, dtype=torch.double)
    expected = clars.oracle.mask_norms(model, loss_of, x, 5)
    model.zero_grad()
    sums, _ = backward_sums(model, loss_of, x, 5)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("positions", [(), (6,)])
def test_on_an_accelerator(positions, group, accelerated):
    """By the operators for accelerators, in the plain twins of their kernels."""
    options = {"estimator": "group", "group": group} if group > 1 else {}
    assert_sums(Pair(4, 3, 5).double(), torch.randn(7, *positions, 2, dtype=torch.double), timed=False, **options)


def test_autocast_of_accelerators_takes_the_widest(monkeypatch):
    """A processor's leaves bilinear layers alone, and wants inputs and weight of one type."""
    given = torch.randn(2, dtype=torch.bfloat16), torch.randn(2, dtype=torch.float16), None
    with torch.autocast("cpu", torch.bfloat16):
        assert where.cast_to_widest(*given) == given
        monkeypatch.setattr(where, "on_processor", lambda tensor: False)
        one, other, none = where.cast_to_widest(*given)
    assert one.dtype == other.dtype == torch.float32
    assert none is None


@pytest.mark.parametrize("positions", [(), (3,)])
def test_autocast(positions):
    """Of the layers before it, whose outputs and gradients are rounded to 8 bits, and theirs to as many again."""

    class Cast(Pair):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                a, b = self.a(x), self.b(x)
                assert a.dtype == torch.bfloat16
                return self.meet(torch.tanh(a).float(), b.float())

    model, x = Cast(4, 3, 5), torch.randn(7, *positions, 2)
    sums, _ = backward_sums(model, loss_of, x, 7)
    double = Pair(4, 3, 5).double()
    double.load_state_dict(model.state_dict())
    expected = sums_one_by_one(double, x.double())
    torch.testing.assert_close({name: value.double() for name, value in sums.items()}, expected, rtol=6 * 2**-8, atol=0)


def test_compiled():
    torch._dynamo.reset()
    model, x = Pair(4, 3, 5).double(), torch.randn(6, 3, 2, dtype=torch.double)
    expected, _ = backward_sums(model, loss_of, x, 6)
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    loss_of(torch.compile(model, backend="aot_eager", fullgraph=True), x, 6).backward()
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-11, atol=0)
    torch._dynamo.reset()


class Constant(nn.Module):
    """An input that is a parameter, with a row for each example of the batch."""

    def __init__(self):
        super().__init__()
        self.meet, self.query = nn.Bilinear(3, 4, 2), nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return self.meet(x, self.query)


@pytest.mark.filterwarnings("ignore:No fast rule measures")
def test_an_input_that_is_a_parameter():
    model, x = Constant().double(), torch.randn(5, 3, dtype=torch.double)
    expected = clars.oracle.mask_norms(model, loss_of, x, 5)
    sums, _ = backward_sums(model, loss_of, x, 5)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)
    _tracker = clars.ExampleNorms(model, uncovered="refuse")
    with pytest.raises(clars.UnsupportedLayerError, match="'query' is an input of bilinear"):
        model(x)


def test_an_input_without_a_batch_dimension():
    _tracker = clars.ExampleNorms(model := nn.Bilinear(3, 4, 2))
    with pytest.raises(clars.UnsupportedLayerError, match="batch dimension"):
        model(torch.randn(3), torch.randn(4))
