"""The forward that stands in a module's place: what others read off it, and what others make of it."""

import copy
import functools
import inspect
import pickle
import types

import pytest
import torch
from conftest import squared_loss
from torch import nn

import clars


class Classifier(nn.Module):
    """A forward such as those whose signature trainers read, to see what to pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, pixel_values: torch.Tensor, labels=None, *, scale: float = 1.0) -> torch.Tensor:
        """Return logits."""
        return self.head(self.norm(self.conv(pixel_values)).relu().mean((2, 3))) * scale


def images(n=4):
    return torch.randn(n, 3, 6, 6)


def test_the_signature_is_the_models_own():
    """Trainers drop every input that it does not name: transformers' died for want of pixel_values."""
    model = Classifier()
    plain = inspect.signature(model.forward), inspect.getfullargspec(model.forward), model.forward.__doc__
    norms = clars.ExampleNorms(model)
    assert (inspect.signature(model.forward), inspect.getfullargspec(model.forward), model.forward.__doc__) == plain
    assert inspect.getsource(model.forward) == inspect.getsource(Classifier.forward)
    assert inspect.signature(model.conv.forward) == inspect.signature(nn.Conv2d.forward.__get__(model.conv))
    norms.remove()
    assert "forward" not in vars(model) and inspect.signature(model.forward) == plain[0]


def test_the_signature_of_a_forward_that_was_put_there():
    """By a library, or by hand: bound or not, with or without a signature of its own."""
    model = Classifier()
    kinds = {
        "function": lambda x, flip=False: Classifier.forward(model, x),
        "method": types.MethodType(lambda self, x, self_=None: Classifier.forward(self, x), model),
        "partial": functools.partial(Classifier.forward, model),
    }
    for name, forward in kinds.items():
        model.forward = forward
        plain = inspect.signature(forward)
        norms = clars.ExampleNorms(model)
        assert inspect.signature(model.forward) == plain, name
        squared_loss(model, images()).backward()
        assert all(norms.sums().values()), name
        norms.remove()
        assert model.forward is forward or model.forward == forward, name
        model.zero_grad()


def test_copies_and_pickles_are_of_the_plain_class():
    model, x = Classifier(), images()
    norms = clars.ExampleNorms(model)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.copy(model)
    for twin in twins:
        assert inspect.signature(twin.forward) == inspect.signature(model.forward)
        torch.testing.assert_close(twin.eval()(x), model.eval()(x))
        own = clars.ExampleNorms(twin)
        twin.zero_grad()
        squared_loss(twin, x).backward()
        assert all(own.sums().values())
        own.remove()
    norms.remove()


class Plain(Classifier):
    """With a forward that torch.jit can compile."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def recorded(model, x):
    yield "jit.script", lambda: torch.jit.script(model)
    yield "jit.script of a copy", lambda: torch.jit.script(copy.deepcopy(model))
    yield "jit.trace", lambda: torch.jit.trace(model, x)
    yield "fx", lambda: torch.fx.symbolic_trace(model)
    if hasattr(torch.compiler, "is_exporting"):  # else the tracking has to be taken away first
        yield "export", lambda: torch.export.export(model, (x,)).module()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
def test_what_records_a_model_records_its_plain_forward():
    """For another place, where nobody measures; a tracked one was refused, for reasons that named no remedy."""
    model, x = Plain().eval(), images()
    norms = clars.ExampleNorms(model)
    plain = model(x)
    for name, record in recorded(model, x):
        torch.testing.assert_close(record()(x), plain, msg=lambda m, n=name: f"{n}: {m}")
    squared_loss(model, x).backward()
    assert all(norms.sums().values())


def test_functional_transforms_leave_no_norms():
    """Their gradients are returned and reach no parameter."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    norms = clars.ExampleNorms(model)
    parameters = dict(model.named_parameters())

    def loss(parameters, example):
        return torch.func.functional_call(model, parameters, (example[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    assert norms.totals() == {}
    (model(x).square().sum()).backward()
    for layer in ("0", "2"):
        rows = torch.cat([each[f"{layer}.{name}"].flatten(1) for name in ("weight", "bias")], 1)
        torch.testing.assert_close(norms.sums()[layer], rows.norm(dim=1).sum())


@pytest.mark.parametrize("compiles", [True, False])
def test_second_derivatives_name_a_remedy(compiles, monkeypatch):
    from clars import native

    if not compiles:
        monkeypatch.setattr(native, "applies", lambda *tensors: False)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(5, 3, requires_grad=True)
    norms = clars.ExampleNorms(model)
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiated twice.*norms\.remove\(\)"):
        gradient.square().sum().backward()
    norms.remove()
    (gradient,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()


def test_an_empty_batch_counts_for_nothing():
    """As a process has it that is left without examples; it was refused for its number of rows."""
    model, x = Classifier().eval(), images()
    norms = clars.ExampleNorms(model)
    squared_loss(model, x).backward()
    expected = norms.sums()
    model.zero_grad()
    model(x[:0]).sum().backward()
    assert not any(norms.sums().values())
    squared_loss(model, x).backward()
    torch.testing.assert_close(norms.sums(), expected)
    optimizer = clars.CLARS(model, lr=0.0)
    optimizer.zero_grad()
    model(x[:0]).sum().backward()
    optimizer.step()
