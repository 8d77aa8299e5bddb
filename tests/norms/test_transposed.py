"""Transposed convolutions, against the definition and against one backward pass per example."""

import copy

import pytest
import torch
from conftest import assert_exact, backward_sums, squared_loss
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import clars
from clars.norms.methods import METHODS

KINDS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.double)


def sums_one_by_one(model, x, group=1):
    """S of a model that is one layer, from a backward pass of each group's part of the loss."""
    total = 0.0
    for part in x.split(group):
        model.zero_grad()
        (squared_loss(model, part) * len(part) / len(x)).backward()
        total += torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    model.zero_grad()
    return total


@given(st.data())
@pytest.mark.parametrize("method", ["matrix", "grouped", "gram"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_by_definition(dimensions, method, data):
    """Each method in turn, whatever its estimate; output padding of less than a stride, and of more."""
    each = [data.draw(st.integers(1, 3)) for _ in range(3 * dimensions)]
    kernel, stride, dilation = (tuple(each[i::3]) for i in range(3))
    extra = tuple(data.draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation))
    padding = tuple(data.draw(st.integers(0, taps // 2)) for taps in kernel)
    groups, depth = data.draw(st.sampled_from([1, 1, 2, 3])), data.draw(st.integers(1, 2))
    outputs = groups * data.draw(st.integers(1, 2))
    how = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation, "groups": groups}
    layer = KINDS[dimensions - 1](groups * depth, outputs, kernel, bias=data.draw(st.booleans()), **how)
    model, x = (
        nn.Sequential(layer).double(),
        inputs(data.draw(st.integers(1, 4)), groups * depth, *[3, 4, 2][:dimensions]),
    )
    with pytest.MonkeyPatch.context() as patch:
        for one in METHODS:
            if one.name == method:
                patch.setattr(one, "operations", lambda sizes: 0.0)
        sums = assert_exact(model, squared_loss, x)
    torch.testing.assert_close(sums["0"], sums_one_by_one(model, x), rtol=1e-12, atol=0)


CASES = {
    "plain": (nn.ConvTranspose2d(4, 6, 3), (7, 4, 5, 4)),
    "stride": (nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1), (7, 4, 5, 4)),
    "output padding": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (7, 4, 5, 4)),
    "windows side by side": (nn.ConvTranspose2d(4, 6, 2, stride=2), (7, 4, 3, 3)),
    "point": (nn.ConvTranspose2d(16, 8, 1), (7, 16, 5, 4)),
    "groups": (nn.ConvTranspose2d(8, 6, 3, groups=2, dilation=2, bias=False), (7, 8, 4, 5)),
    "depthwise": (nn.ConvTranspose2d(6, 6, 3, groups=6, padding=1), (7, 6, 4, 5)),
    "depthwise, two outputs": (nn.ConvTranspose2d(6, 12, 3, groups=6, stride=2), (7, 6, 4, 5)),
    "one dimension": (nn.ConvTranspose1d(4, 6, 3, stride=3, output_padding=2), (7, 4, 9)),
    "three dimensions": (nn.ConvTranspose3d(3, 2, 2, stride=2), (7, 3, 2, 3, 3)),
    "output padding of strides": (nn.ConvTranspose2d(4, 6, 2, dilation=3, padding=1, output_padding=2), (7, 4, 5, 4)),
}


def case(name, dtype=torch.double):
    layer, shape = CASES[name]
    x = torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(copy.deepcopy(layer)).to(dtype), x


@pytest.mark.parametrize("method", ["estimated", "ordinary", "matrix", "gram", "grouped"])
@pytest.mark.parametrize("name", CASES)
def test_groups_of_examples(name, method, monkeypatch):
    for one in METHODS:
        if one.name == method:
            monkeypatch.setattr(one, "operations", lambda sizes: 0.0)
    model, x = case(name)
    sums, _ = backward_sums(model, squared_loss, x, estimator="group", group=3)
    torch.testing.assert_close(sums["0"], sums_one_by_one(model, x, group=3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_the_batch(name):
    """Each block's norms are its own examples', so that all that can be drawn together are all there is."""
    model, x = case(name)
    expected, parts = sums_one_by_one(model, x[:6]), set()
    norms = clars.ExampleNorms(model, "subset", fraction=0.5)
    for _ in range(20):
        model.zero_grad()
        squared_loss(model, x[:6]).backward()
        (squares,) = norms.squares().values()
        parts.add(squares.sqrt().sum().item())
    norms.remove()
    assert len(parts) == 2
    assert sum(parts) == pytest.approx(float(expected), rel=1e-12, abs=0)


@pytest.mark.parametrize("layout", ["nchw", "channels last"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_single_precision(name, group, layout):
    """By the C++ kernels, where there are any; products of float32 round their sums alone."""
    model, x = case(name)
    expected = sums_one_by_one(model, x, group)
    single = x.float()
    if layout == "channels last" and x.dim() == 4:
        single, model = single.to(memory_format=torch.channels_last), model.to(memory_format=torch.channels_last)
    options = {"estimator": "group", "group": group} if group > 1 else {}
    sums, _ = backward_sums(model.float(), squared_loss, single, **options)
    torch.testing.assert_close(sums["0"].double(), expected, rtol=3e-6, atol=0)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("method", ["estimated", "fused", "squared", "gram", "depthwise"])
@pytest.mark.parametrize("name", CASES)
def test_on_an_accelerator(name, method, group, accelerated, monkeypatch):
    """By the operators for accelerators, in the plain twins of their kernels."""
    for one in METHODS:
        if one.name == method:
            monkeypatch.setattr(one, "operations", lambda sizes: 0.0)
    model, x = case(name)
    expected = sums_one_by_one(model, x, group)
    options = {"estimator": "group", "group": group} if group > 1 else {}
    sums, _ = backward_sums(model, squared_loss, x, timed=False, **options)
    torch.testing.assert_close(sums["0"], expected, rtol=1e-9, atol=0)


def test_autocast():
    """Input, weight and output gradient are rounded to 8 bits, so that a norm of many such is off by less than 2^-8."""
    model, x = case("output padding")
    expected = sums_one_by_one(model, x)

    def loss(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        assert y.dtype == torch.bfloat16
        return squared_loss(lambda x: x, y.float())

    sums, _ = backward_sums(model.float(), loss, x.float())
    torch.testing.assert_close(sums["0"].double(), expected, rtol=2**-8, atol=0)


def test_compiled():
    torch._dynamo.reset()
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 2)
    )
    model, x = model.double(), inputs(5, 4, 3, 3)
    expected, _ = backward_sums(model, squared_loss, x)
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    squared_loss(torch.compile(model, backend="aot_eager", fullgraph=True), x).backward()
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-12, atol=0)
    torch._dynamo.reset()


def test_an_input_without_a_batch_dimension():
    norms = clars.ExampleNorms(model := nn.ConvTranspose2d(2, 2, 3))
    with pytest.raises(clars.UnsupportedLayerError, match="batch dimension"):
        model(torch.randn(2, 4, 4))
    norms.remove()


def test_a_decoder():
    """Between other layers; the requested size of the output decides its padding."""

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.up(torch.relu(self.down(x)), output_size=x.shape[2:]))

    assert_exact(Decoder().double(), squared_loss, inputs(4, 2, 8, 7), atol=1e-12)
