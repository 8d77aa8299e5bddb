"""Layers that a compiled function computes whole: values, gradients, norms, and the checks that Python makes of it."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import clars
from clars import native
from clars.norms.watch.registry import REGISTRY

pytestmark = pytest.mark.skipif(not native.load().loaded, reason=native.load().text)

LAYERS = {
    "each": (nn.Conv2d(16, 24, 3, padding=1), (5, 16, 40, 33)),
    "each of many examples": (nn.Conv2d(16, 24, 3, padding=1), (23, 16, 40, 33)),
    "each in groups": (nn.Conv1d(16, 24, 5, groups=4), (5, 16, 1400)),
    "each in one dimension": (nn.Conv1d(16, 24, 5, stride=2), (5, 16, 700)),
    "each in three dimensions": (nn.Conv3d(8, 6, 2, bias=False), (5, 8, 9, 20, 31)),
    "direct": (nn.Conv2d(3, 7, (3, 2), stride=(1, 2), padding=1), (5, 3, 9, 14)),
    "depthwise": (nn.Conv2d(18, 18, 3, stride=2, padding=1, groups=18), (5, 18, 9, 14)),
    "tiled": (nn.Conv2d(16, 24, 3, padding=1, groups=4), (5, 16, 70, 33)),
    "tiled, few positions": (nn.Conv2d(48, 32, 3, stride=2, padding=1, groups=2), (5, 48, 5, 6)),
    "matrix": (nn.Conv2d(16, 24, 1, stride=2), (5, 16, 9, 14)),
    "matrix of every position": (nn.Conv2d(16, 24, 1), (5, 16, 9, 14)),
    "gram": (nn.Conv2d(256, 192, 3, padding=1), (5, 256, 3, 4)),
    "gram of one position each": (nn.Conv2d(512, 512, 1), (5, 512, 2, 3)),
    "gram of every other position": (nn.Conv2d(512, 512, 1, stride=2), (5, 512, 3, 3)),
    "gram, every other window": (nn.Conv2d(256, 192, 3, stride=2, padding=1), (5, 256, 5, 6)),
    "gram, windows far apart": (nn.Conv2d(256, 256, 3, stride=3, padding=1), (5, 256, 3, 4)),
    "linear": (nn.Linear(40, 30), (5, 21, 40)),
    "linear, few positions": (nn.Linear(700, 600, bias=False), (5, 3, 700)),
    "linear, one position": (nn.Linear(40, 30), (5, 40)),
    "linear, two dimensions of positions": (nn.Linear(9, 11), (5, 3, 4, 9)),
    "batch norm": (nn.BatchNorm2d(24), (5, 24, 9, 7)),
    "batch norm, long": (nn.BatchNorm2d(3), (6, 3, 33, 129)),
    "batch norm, one position": (nn.BatchNorm1d(130), (4, 130)),
    "batch norm, one position of many channels": (nn.BatchNorm2d(3000), (40, 3000, 1, 1)),
    "batch norm of two examples": (nn.BatchNorm1d(2), (2, 2, 65)),
    "group norm": (nn.GroupNorm(4, 24), (5, 24, 9, 7)),
    "group norm, long": (nn.GroupNorm(1, 3), (6, 3, 33, 129)),
    "group norm, a channel each": (nn.GroupNorm(6, 6), (5, 6, 70)),
    "group norm, one position": (nn.GroupNorm(5, 130), (4, 130)),
    "layer norm": (nn.LayerNorm(40), (5, 300, 40)),
    "layer norm over two dimensions": (nn.LayerNorm((5, 129)), (3, 7, 5, 129)),
    "layer norm, one position": (nn.LayerNorm(33), (6, 33)),
}


@pytest.fixture(params=["processor", "accelerator"], autouse=True)
def way(request):
    """The layers' own kernels, or the operators that accelerators have, by their plain twins."""
    if request.param == "accelerator":
        if "threads" in request.fixturenames and request.getfixturevalue("threads") > 1:
            pytest.skip("threads are a processor's")
        request.getfixturevalue("accelerated")
    return request.param


# Of inputs of these, only those whose positions lie together
POSITIONS_TOGETHER = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)

# What there are no kernels for, beside what there are some for
OTHERS = {
    "gram in one dimension": (nn.Conv1d(512, 512, 3, padding=1), (5, 512, 5)),
    "one position, padded": (nn.Conv2d(16, 24, 1, padding=1), (5, 16, 9, 14)),
    "one position of few, padded": (nn.Conv2d(512, 512, 1, padding=1), (5, 512, 2, 2)),
}


def prepared(name):
    torch.manual_seed(0)
    layer, shape = copy.deepcopy((LAYERS | OTHERS)[name][0]), (LAYERS | OTHERS)[name][1]
    for value in layer.parameters():
        nn.init.normal_(value, 0.5)
    return layer, torch.randn(shape) * 3 + 2


def compiled(y):
    """Whether a compiled function made `y`."""
    return "CppNode" in type(y.grad_fn).__name__ or "CppNode" in y.grad_fn.name()


def definition(layer, x, gy, group=1):
    """Gradients of input and parameters, and the parameters' squared norms by example or group, in float64.

    Of contiguous tensors: older torch crashes in group normalisation of channels that lie together in float64.
    """
    twin, x, gy = copy.deepcopy(layer).double(), x.double().contiguous().requires_grad_(), gy.double().contiguous()
    y = twin(x)
    parameters = dict(twin.named_parameters())
    whole = torch.autograd.grad(y, [x, *parameters.values()], gy, retain_graph=True)
    squares = {name: [] for name in parameters}
    for i in range(0, len(x), group):
        alone = torch.zeros_like(y)
        alone[i : i + group] = gy[i : i + group]
        for name, part in zip(parameters, torch.autograd.grad(y, list(parameters.values()), alone, retain_graph=True)):
            squares[name].append(part.square().sum())
    return y.detach(), whole, {name: torch.stack(each) for name, each in squares.items()}


@pytest.mark.parametrize("together", [False, True], ids=["", "channels together"])
@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_by_definition(name, together, threads, way):
    layer, x = prepared(name)
    if together:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    norms = clars.ExampleNorms(layer, layers=clars.layers(layer, "parameter"))
    x.requires_grad_()
    y = layer(x)
    assert compiled(y) or name in OTHERS or (together and isinstance(layer, POSITIONS_TOGETHER))
    gy = torch.randn_like(y)
    norms.remove()
    expected, whole, squares = definition(layer, x.detach(), gy)
    tolerance = 5e-6 if compiled(y) else 2e-5
    by_torch = way == "accelerator" or not compiled(y)  # whose batch normalisation is as exact as that
    assert (y.detach().double() - expected).norm() <= (5e-6 if by_torch else 1e-6) * expected.norm()
    y.backward(gy)
    for got, value in zip((x.grad, *(p.grad for p in layer.parameters())), whole):
        assert got.shape == value.shape
        assert (got.double() - value).norm() <= tolerance * value.norm()
    found = norms.squares()
    assert found.keys() == squares.keys()
    for key, value in squares.items():
        torch.testing.assert_close(found[key].double(), value, rtol=tolerance, atol=0)


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_a_part_by_definition(name, block, threads, monkeypatch):
    layer, x = prepared(name)
    norms = clars.ExampleNorms(layer, "subset", fraction=1 / 3, layers=clars.layers(layer, "parameter"))
    blocks = norms.estimator.cut(len(x)).blocks
    monkeypatch.setattr(norms.estimator._random, "randrange", lambda count: min(block, count - 1))
    x.requires_grad_()
    y = layer(x)
    assert compiled(y)
    gy = torch.randn_like(y)
    y.backward(gy)
    norms.remove()
    _, whole, squares = definition(layer, x.detach(), gy)
    for got, value in zip((x.grad, *(p.grad for p in layer.parameters())), whole):
        assert (got.double() - value).norm() <= 5e-6 * value.norm()
    drawn = min(block, blocks - 1)
    rows = slice(drawn * len(x) // blocks, (drawn + 1) * len(x) // blocks)
    for key, value in norms.squares().items():
        torch.testing.assert_close(value.double(), squares[key][rows], rtol=5e-6, atol=0)


@pytest.mark.filterwarnings("ignore:A backward pass of")
@pytest.mark.parametrize("group", [2, 30])
@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_groups_by_definition(name, group, threads):
    layer, x = prepared(name)
    norms = clars.ExampleNorms(layer, "group", group=group, layers=clars.layers(layer, "parameter"))
    x.requires_grad_()
    y = layer(x)
    gy = torch.randn_like(y)
    y.backward(gy)
    norms.remove()
    tolerance = 5e-6 if compiled(y) else 2e-5
    _, whole, squares = definition(layer, x.detach(), gy, group)
    for got, value in zip((x.grad, *(p.grad for p in layer.parameters())), whole):
        assert (got.double() - value).norm() <= tolerance * value.norm()
    for key, value in squares.items():
        torch.testing.assert_close(norms.squares()[key].double(), value, rtol=tolerance, atol=0)


@pytest.mark.parametrize("where", ["gradient", "input"])
@pytest.mark.parametrize(
    "name",
    ["each", "direct", "depthwise", "tiled", "matrix", "gram", "linear", "batch norm", "group norm", "layer norm"],
)
def test_numbers_that_are_in_memory_negated(name, where):
    """As complex conjugation leaves them."""
    layer, x = prepared(name)
    if where == "input":
        x = torch._neg_view(x)
    norms = clars.ExampleNorms(layer, layers=clars.layers(layer, "parameter"))
    for _ in range(2):  # the second call is recognised
        norms.reset()
        layer.zero_grad()
        y = layer(x)
        gy = torch.randn_like(y)
        if where == "gradient":
            gy = torch._neg_view(gy)
        y.backward(gy)
    norms.remove()
    _, whole, squares = definition(layer, x.clone(), gy.clone())
    for parameter, value in zip(layer.parameters(), whole[1:]):
        assert (parameter.grad.double() - value).norm() <= 2e-5 * value.norm()
    for key, value in squares.items():
        torch.testing.assert_close(norms.squares()[key].double(), value, rtol=2e-5, atol=0)


def test_a_gradient_of_zeros_that_are_not_in_memory():
    layer, x = prepared("layer norm")
    norms = clars.ExampleNorms(layer)
    y = layer(x)
    y.backward(torch._efficientzerotensor(y.shape))
    assert all(not squares.any() for squares in norms.squares().values())


def test_a_layer_that_fails_on_the_way_back_leaves_no_rubbish():
    layer, x = prepared("linear")
    norms = clars.ExampleNorms(layer)
    layer(x).sum().backward()
    before = norms.sums()
    y = layer(x)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(y, layer.weight, torch.randn(2, *y.shape), is_grads_batched=True)
    assert norms.sums() == before


@pytest.mark.parametrize("name", ["each", "depthwise", "gram", "linear", "batch norm", "group norm", "layer norm"])
def test_values_are_those_without_tracking_bit_for_bit(name):
    layer, x = prepared(name)
    twin = copy.deepcopy(layer)
    plain = layer(x)
    norms = clars.ExampleNorms(twin)
    assert torch.equal(twin(x), plain)
    norms.remove()
    moved = dict(layer.named_buffers())
    assert all(torch.equal(value, moved[name]) for name, value in twin.named_buffers())


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("name", ["direct", "linear", "batch norm", "group norm", "layer norm"])
def test_a_frozen_parameter_has_no_part_in_it(name, frozen):
    layer, x = prepared(name)
    getattr(layer, frozen).requires_grad_(False)
    norms = clars.ExampleNorms(layer)
    y = layer(x)
    gy = torch.randn_like(y)
    y.backward(gy)
    layer.requires_grad_(True)
    _, _, squares = definition(layer, x, gy)
    (found,) = norms.squares().values()
    torch.testing.assert_close(found.double(), squares[{"weight": "bias", "bias": "weight"}[frozen]], rtol=5e-6, atol=0)


@pytest.mark.parametrize(
    "name", ["each", "direct", "depthwise", "tiled", "gram", "linear", "batch norm", "group norm", "layer norm"]
)
def test_weight_and_bias_of_a_layer_have_one_norm(name):
    layer, x = prepared(name)
    norms = clars.ExampleNorms(layer)
    y = layer(x)
    gy = torch.randn_like(y)
    y.backward(gy)
    _, _, squares = definition(layer, x, gy)
    (found,) = norms.squares().values()
    torch.testing.assert_close(found.double(), sum(squares.values()), rtol=5e-6, atol=0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 5)
    )


def images(n=4):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def added(model, *steps):
    """What is measured by calling each of `steps` with the model."""
    norms = clars.ExampleNorms(model)
    for step in steps:
        step(model)
    found = norms.sums()
    norms.remove()
    return found


def test_micro_batches_add_up():
    model = network()
    model[1].eval()
    whole = added(model, lambda m: m(images()).square().sum().backward())
    parts = added(model, *(lambda m, part=part: m(part).square().sum().backward() for part in images().split(2)))
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_activation_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=reentrant)

    expected = added(network(), lambda m: m(images()).square().sum().backward())
    found = added(Checkpointed(), lambda m: m(images()).square().sum().backward())
    torch.testing.assert_close(list(found.values()), list(expected.values()), rtol=1e-6, atol=0)


def test_a_backward_pass_inside_of_autocast_has_full_precision():
    def inside(model):
        loss = model(images()).square().sum()
        with torch.autocast("cpu", torch.bfloat16):
            loss.backward()

    expected = added(network(), lambda m: m(images()).square().sum().backward())
    torch.testing.assert_close(added(network(), inside), expected, rtol=1e-6, atol=0)


def test_a_drawn_block_has_its_own_squares():
    model = network()
    norms = clars.ExampleNorms(model)
    model(images(8)).square().sum().backward()
    every = norms.squares()
    drawn = clars.ExampleNorms(model, "subset", fraction=1 / 4)
    model(images(8)).square().sum().backward()
    for name, squares in drawn.squares().items():
        blocks = every[name].view(4, 2)
        assert any(torch.allclose(squares, block, rtol=1e-5) for block in blocks), name


def test_a_second_backward_pass_is_refused():
    model = network()
    norms = clars.ExampleNorms(model)
    loss = model(images()).square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(clars.UnsupportedLayerError, match="second backward pass"):
        loss.backward()
    assert norms.active


def test_differentiating_twice_is_refused():
    model = network()
    norms = clars.ExampleNorms(model)
    x = images().requires_grad_()
    loss = model(x).square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        gradient.square().sum().backward()
    assert norms.active


def test_an_input_changed_in_place_is_caught():
    model = nn.Linear(6, 6)
    norms = clars.ExampleNorms(model)
    x = torch.randn(4, 6)
    y = model(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    assert norms.active


def test_a_backward_pass_after_the_tracker_is_gone():
    model, plain = network(), network()
    norms = clars.ExampleNorms(model)
    loss = model(images()).square().sum()
    norms.remove()
    del norms
    gc.collect()
    loss.backward()
    plain(images()).square().sum().backward()
    for one, other in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-4)


def test_a_graph_keeps_no_tracker_alive():
    model = network()
    norms = clars.ExampleNorms(model)
    y = model(images())
    gone = weakref.ref(norms)
    del norms, model
    gc.collect()
    assert gone() is None and y.grad_fn is not None


def test_numbers_of_accumulators_are_not_used_again():
    first, second = (clars.ExampleNorms(network()) for _ in range(2))
    numbers = [each.number for norms in (first, second) for each in norms._accumulators.values()]
    assert len(set(numbers)) == len(numbers)
    assert all(REGISTRY.get(number).number == number for number in numbers)
