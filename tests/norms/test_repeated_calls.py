"""A call that is made again at every step is recognised, and only that call: what changes between steps is noticed."""

import copy
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import clars
from clars import native
from clars.norms.plan import plan
from clars.norms.watch.repeated_call import RepeatedCall

pytestmark = pytest.mark.skipif(not native.load().loaded, reason=native.load().text)


@pytest.fixture(params=["processor", "accelerator"], autouse=True)
def way(request):
    """Layers of either kind in C++."""
    if request.param == "accelerator":
        request.getfixturevalue("accelerated")
    return request.param


class Network(nn.Module):
    """A layer of each kind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.features, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.group(self.norm(self.conv(x)).relu()).flatten(2).mT
        return self.linear(self.features(x))


def images(n=6, size=5):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n + size))


def step(model, x):
    model.zero_grad()
    model(x).square().sum().backward()


@pytest.fixture
def again(monkeypatch):
    """Which calls were recognised."""
    seen, original = [], RepeatedCall.again

    def noted(self, function, *arguments):
        y = original(self, function, *arguments)
        seen.append((function, y is not None))
        return y

    monkeypatch.setattr(RepeatedCall, "again", noted)
    return seen


def recognised(seen):
    return {function for function, same in seen if same}


EVERY = {F.conv2d, F.batch_norm, F.group_norm, F.layer_norm, F.linear}


def begun(model, x):
    """Take the step after which a call is recognised, which is followed."""
    norms = clars.ExampleNorms(model)
    step(model, x)
    return norms


def test_the_second_step_is_recognised_and_gives_the_same(again):
    model = Network()
    norms = clars.ExampleNorms(model)
    step(model, images())
    first, gradients = norms.squares(), [p.grad for p in model.parameters()]
    assert not recognised(again)
    norms.reset()
    step(model, images())
    assert recognised(again) == EVERY
    assert all(torch.equal(value, first[name]) for name, value in norms.squares().items())
    assert all(torch.equal(p.grad, value) for p, value in zip(model.parameters(), gradients))


def test_a_module_of_torch_that_is_called_again_need_not_run(monkeypatch):
    """What its forward leads to is known; what else it does is done, and hooks run."""
    model, twin, hooked, ran = Network(), Network(), [], set()
    norms = clars.ExampleNorms(model)
    model.linear.register_forward_hook(lambda module, args, y: hooked.append(y))
    forwards = {type(module).forward.__code__: name for name, module in model.named_children()}
    step(model, images())
    sys.setprofile(lambda frame, event, value: ran.add(forwards.get(frame.f_code)) if event == "call" else None)
    try:
        step(model, images())
    finally:
        sys.setprofile(None)
    assert ran == {None} and len(hooked) == 2 and norms.active
    for _ in range(2):
        step(twin, images())
    assert model.norm.num_batches_tracked == 2
    for one, other in zip(model.buffers(), twin.buffers()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


class Doubling(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(2 * x, weight, bias)


def own_function(module):
    plain = module._conv_forward
    module._conv_forward = lambda x, weight, bias: plain(x.flip(-1), weight, bias)


@contextmanager
def other_function(monkeypatch):
    plain = F.conv2d
    with monkeypatch.context() as patch:
        patch.setattr(F, "conv2d", lambda x, *others: plain(2 * x, *others))
        yield


@contextmanager
def other_forward(monkeypatch):
    plain = nn.Conv2d.forward
    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", lambda self, x: plain(self, x) * 2)
        yield


class Halving(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        y = function(*args, **(kwargs or {}))
        return y / 2 if function is F.conv2d else y


class Moded(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with Halving():
            return self.inner(x)


CONTEXTS = {"a function of torch": other_function, "a forward": other_forward}
STRANGERS = ["a subclass", "a function of the object", "a mode", *CONTEXTS]


@pytest.mark.parametrize("stranger", STRANGERS)
def test_nothing_that_stands_between_a_module_and_its_function_is_passed_over(stranger, monkeypatch):
    torch.manual_seed(0)
    layer = (Doubling if stranger == "a subclass" else nn.Conv2d)(3, 4, 3)
    model = Moded(layer) if stranger == "a mode" else nn.Sequential(layer)
    if stranger == "a function of the object":
        own_function(layer)
    context, x = CONTEXTS.get(stranger, lambda patch: nullcontext()), images()
    with context(monkeypatch):
        expected = model(x)
    norms = clars.ExampleNorms(model)
    if stranger in CONTEXTS:  # it comes in the midst
        for _ in range(2):
            model(x)
    for _ in range(2):
        with context(monkeypatch):
            torch.testing.assert_close(model(x), expected)
    assert norms.active


def frozen(name):
    return lambda model: model.get_parameter(name).requires_grad_(False)


def other_statistics(model):
    model.norm.running_mean = torch.zeros(8)


def other_parameter(model):
    model.linear.weight = nn.Parameter(torch.randn(8, 8))


CHANGES = {
    "stride": (lambda model: setattr(model.conv, "stride", (2, 2)), {F.conv2d}),
    "padding": (lambda model: setattr(model.conv, "padding", "valid"), {F.conv2d}),
    "groups": (lambda model: setattr(model.group, "num_groups", 4), {F.group_norm}),
    "eps": (lambda model: setattr(model.features, "eps", 0.5), {F.layer_norm}),
    "momentum": (lambda model: setattr(model.norm, "momentum", None), {F.batch_norm}),
    "statistics": (other_statistics, {F.batch_norm}),
    "evaluation": (lambda model: model.eval(), {F.batch_norm}),
    "another parameter": (other_parameter, {F.linear}),
    "no bias": (lambda model: setattr(model.linear, "bias", None), {F.linear}),
    "frozen weight": (frozen("conv.weight"), {F.conv2d}),
    "frozen bias": (frozen("linear.bias"), {F.linear}),
    "precision": (lambda model: model.double(), EVERY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change, again):
    model = Network()
    apply, concerned = CHANGES[change]
    norms = clars.ExampleNorms(model)
    step(model, images())
    apply(model)
    twin = copy.deepcopy(model)
    x = images().to(model.conv.weight.dtype)
    again.clear()
    norms.reset()
    step(model, x)
    assert not recognised(again) & concerned
    fresh = clars.ExampleNorms(twin)
    step(twin, x)
    found, expected = norms.squares(), fresh.squares()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)
    for one, other in zip(model.buffers(), twin.buffers()):
        assert torch.equal(one, other)


@pytest.mark.parametrize("x", [images(7), images(6, 6), images().mT], ids=["batch", "size", "strides"])
def test_another_kind_of_input_is_noticed(x):
    model = Network()
    norms = clars.ExampleNorms(model)
    step(model, images())
    norms.reset()
    twin = copy.deepcopy(model)
    step(model, x)
    fresh = clars.ExampleNorms(twin)
    step(twin, x)
    for name, value in fresh.squares().items():
        torch.testing.assert_close(norms.squares()[name], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("model", [nn.BatchNorm2d(8), nn.GroupNorm(2, 8)], ids=["batch", "group"])
def test_channels_that_lie_together_are_noticed(model):
    """The compiled normalisation reads memory as it is where they do not."""
    x = torch.randn(6, 8, 5, 5)
    norms = clars.ExampleNorms(model)
    step(model, x)
    expected, gradient = norms.squares(), model.weight.grad
    norms.reset()
    step(model, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(model.weight.grad, gradient, rtol=1e-4, atol=1e-4)
    for name, value in norms.squares().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=0)


def test_another_number_of_threads_is_noticed(way):
    """With fewer examples than threads other means are taken on processors."""
    if way == "accelerator":
        pytest.skip("has threads of its own")
    model = nn.Linear(8, 8)

    def is_made_in_cpp():
        y = model(torch.randn(1, 4, 8))
        y.sum().backward()
        return "CppNode" in y.grad_fn.name()

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    norms = begun(model, torch.randn(1, 4, 8))
    try:
        assert is_made_in_cpp()
        torch.set_num_threads(2)
        assert not is_made_in_cpp()
    finally:
        torch.set_num_threads(before)
    assert norms.active


def test_autocast_is_noticed():
    model = Network()
    norms = clars.ExampleNorms(model)
    step(model, images())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images()).dtype == torch.bfloat16
    assert norms.active


def test_rows_that_are_not_the_batch_at_a_later_step():
    class Folding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x.reshape(-1, 4))

    model = Folding()
    norms, x = begun(model, torch.randn(4, 4)), torch.randn(2, 3, 4)
    for _ in range(3):
        step(model, x)
        (squares,) = norms.squares().values()
        expected = []
        for row in x:
            gradient = 2 * F.linear(row, model.inner.weight, model.inner.bias).detach()
            expected.append((gradient.T @ row).square().sum() + gradient.sum(0).square().sum())
        torch.testing.assert_close(squares, torch.stack(expected), rtol=1e-5, atol=0)


def test_a_parameter_as_input_is_refused_at_a_later_step():
    class Prompted(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt, self.inner = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x) if x.sum() > 0 else self.inner(self.prompt)

    model = Prompted()
    norms = clars.ExampleNorms(model)
    model(torch.ones(4, 4))
    with pytest.raises(clars.UnsupportedLayerError, match="prompt"):
        model(-torch.ones(4, 4))
    assert norms.active


class Owner(nn.Module):
    def __init__(self, **parameters):
        super().__init__()
        for name, parameter in parameters.items():
            setattr(self, name, parameter)


class Functional(nn.Module):
    """Applies a function to its input, with whatever parameters of `a` and `b` it wants."""

    def __init__(self, function, **owners):
        super().__init__()
        self.function = function
        for name, owner in owners.items():
            setattr(self, name, owner)

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize("view", [lambda weight: weight, lambda weight: weight.contiguous()], ids=["itself", "a view"])
def test_a_weight_as_input_of_its_own_layer_is_refused_at_a_later_step(view):
    model = Functional(lambda m, x: F.linear(x, m.a.weight), a=Owner(weight=nn.Parameter(torch.randn(4, 4))))
    norms = clars.ExampleNorms(model)
    model(torch.randn(4, 4))
    model.function = lambda m, x: F.linear(view(m.a.weight), m.a.weight)
    with pytest.raises(clars.UnsupportedLayerError):
        model(torch.randn(4, 4))
    assert norms.active


def test_a_stranger_that_becomes_a_parameter_is_noticed():
    stranger = nn.Parameter(torch.randn(4))
    owners = {"a": Owner(weight=nn.Parameter(torch.randn(4, 4))), "b": Owner(bias=nn.Parameter(torch.randn(4)))}
    model = Functional(lambda m, x: F.linear(x, m.a.weight, stranger), **owners)
    norms = clars.ExampleNorms(model)
    step(model, torch.randn(4, 4))
    model.b.bias = stranger
    norms.reset()
    step(model, torch.randn(4, 4))
    assert norms.sums()["b.bias"] > 0


def test_the_names_of_arguments_are_noticed():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.name = nn.Parameter(torch.randn(8, 3, 3, 3)), "stride"

        def forward(self, x):
            return F.conv2d(x, self.weight, None, **{self.name: 2})

    model = Named()
    norms = clars.ExampleNorms(model)
    assert model(images()).shape[2:] == (2, 2)
    model.name = "padding"
    assert model(images()).shape[2:] == (7, 7)
    assert norms.active


def test_somebody_who_watches_the_choices_is_noticed():
    model, seen = Network(), []
    norms = clars.ExampleNorms(model)
    step(model, images())
    norms.estimator.report_to(lambda layer, *choice: seen.append(layer))
    norms.reset()
    step(model, images())
    assert set(seen) >= {"conv", "linear"}


def test_a_plan_is_made_of_every_layer_of_a_model_in_use():
    model = Network()
    norms = clars.ExampleNorms(model)
    step(model, images())
    assert norms.active
    choices, _ = plan(model, lambda model, x: model(x).square().sum(), images())
    assert {choice.layer for choice in choices} >= {"conv", "linear"}
