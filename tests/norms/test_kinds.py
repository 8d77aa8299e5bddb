"""Every kind of layer, in generated shapes, against the definition."""

import pytest
import torch
from conftest import assert_exact, squared_loss
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from clars.native import where
from clars.norms.methods import METHODS

sizes = st.integers(1, 6)


@pytest.fixture(params=["matrix", "grouped", "gram", "an example at a time"], scope="module", autouse=True)
def method(request):
    """Each exact method in turn, whatever the estimate of its cost, and the smallest pieces."""

    patch = pytest.MonkeyPatch()
    for method in METHODS:
        if method.name == request.param:
            patch.setattr(method, "operations", lambda sizes: 0.0)
    if request.param == "an example at a time":
        patch.setitem(where.WORKING_SET, "cpu", 1)
    yield
    patch.undo()


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.double)


@given(st.lists(sizes, max_size=3), sizes, sizes, sizes, st.booleans())
def test_linear(positions, batch, inputs_, outputs, bias):
    model = nn.Sequential(nn.Linear(inputs_, outputs, bias=bias)).double()
    assert_exact(model, squared_loss, inputs(batch, *positions, inputs_))


@given(st.data())
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_conv(dimensions, data):
    each = [data.draw(st.integers(1, 3)) for _ in range(3 * dimensions)]
    kernel, stride, dilation = (tuple(each[i::3]) for i in range(3))
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    depth = data.draw(st.integers(1, 2))
    padding = data.draw(st.sampled_from(["same", "valid", 0, 1, tuple(range(dimensions))]))
    mode = data.draw(st.sampled_from(["zeros", "zeros", "circular", "reflect", "replicate"]))
    size = [data.draw(st.integers(7, 9)) for _ in range(dimensions)]
    if padding == "same":
        stride = (1,) * dimensions
    assume(not (padding == "same" and mode != "zeros" and dimensions == 3 and max(dilation) > 1))
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](
        groups * depth,
        groups * data.draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=mode,
    )
    batch = data.draw(st.integers(1, 4))
    assert_exact(nn.Sequential(conv).double(), squared_loss, inputs(batch, groups * depth, *size))


@given(st.integers(2, 5), sizes, st.integers(0, 3), st.booleans(), st.booleans())
def test_batch_norm(batch, channels, dimensions, training, running):
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions]
    model = nn.Sequential(kind(channels, track_running_stats=running)).double().train(training)
    nn.init.normal_(model[0].weight)
    x = inputs(batch, channels, *[3] * dimensions)
    if running:
        model[0].running_mean.normal_()
        model[0].running_var.uniform_(0.5, 2)
    assert_exact(model, squared_loss, 3 + 2 * x, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
@pytest.mark.parametrize("side", [3, 4, 5])
@pytest.mark.parametrize("training", [True, False])
def test_channels_with_few_and_many_positions(norm, side, training):
    """Where a channel has 16 positions or more, the sums come from batch normalisation's own backward."""
    model = nn.Sequential(norm).double().train(training)
    nn.init.normal_(norm.weight)
    assert_exact(model, squared_loss, inputs(3, 4, side, side), atol=1e-12, loss_rtol=1e-14)


@pytest.mark.parametrize("side", [3, 4])
def test_batch_norm_far_from_zero(side):
    """Sums of gradient times input minus mean times sum of gradients lose every digit where |mean| >> std."""
    model = nn.Sequential(nn.BatchNorm2d(2)).double()
    assert_exact(model, squared_loss, 1e6 + inputs(4, 2, side, side))


@given(
    sizes, st.lists(st.integers(1, 4), max_size=2), st.lists(st.integers(2, 4), min_size=1, max_size=2), st.booleans()
)
def test_layer_norm(batch, positions, shape, bias):
    model = nn.Sequential(nn.LayerNorm(shape, bias=bias)).double()
    nn.init.normal_(model[0].weight)
    assert_exact(model, squared_loss, inputs(batch, *positions, *shape), atol=1e-12)


@given(sizes, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_group_norm(batch, groups, depth, dimensions):
    assume(batch * depth * 3**dimensions > 1)
    model = nn.Sequential(nn.GroupNorm(groups, groups * depth)).double()
    nn.init.normal_(model[0].weight)
    assert_exact(model, squared_loss, inputs(batch, groups * depth, *[3] * dimensions), atol=1e-12)


@given(sizes, st.integers(1, 4), st.booleans(), st.booleans())
def test_instance_norm(batch, channels, running, training):
    model = nn.Sequential(nn.InstanceNorm2d(channels, affine=True, track_running_stats=running)).double()
    nn.init.normal_(model[0].weight)
    assert_exact(model.train(training), squared_loss, inputs(batch, channels, 3, 3), atol=1e-12, loss_rtol=1e-14)


@given(sizes, st.lists(sizes, max_size=2), st.integers(2, 5), st.sampled_from([None, 0, 1, -1]))
def test_embedding(batch, positions, entries, padding_idx):
    """Few entries and many positions: examples look the same row up several times."""
    model = nn.Sequential(nn.Embedding(entries, 3, padding_idx=padding_idx)).double()
    indices = torch.randint(entries, (batch, *positions))
    assume((indices != (padding_idx or 0) % entries).any())
    assert_exact(model, squared_loss, indices)


def test_embedding_with_max_norm():
    assert_exact(nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)).double(), squared_loss, torch.randint(4, (3, 5)))


@pytest.mark.parametrize("by", ["module", "parameter"])
def test_layers_by_module_and_by_parameter(by):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 4)).double()
    sums = assert_exact(model, squared_loss, inputs(3, 2, 5, 5), by=by, atol=1e-12)
    assert len(sums) == (3 if by == "module" else 6)
