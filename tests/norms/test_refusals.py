"""What has no exact norm is refused by name, and never added up wrongly."""

import types
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.utils.prune
from conftest import backward_sums, squared_loss
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import clars
from clars import UnsupportedLayerError
from clars.norms.plan import plan


def refused(model, x, match, **options):
    with pytest.raises(UnsupportedLayerError, match=match):
        backward_sums(model, lambda model, x: model(x).sum(), x, **options)


def assert_measured(model, x, oracle=clars.oracle.example_norms, loss=squared_loss, **options):
    expected = oracle(model, loss, x)
    sums, _ = backward_sums(model, loss, x, **options)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=0)


def test_two_backward_passes_through_one_forward():
    model = nn.Linear(3, 3)
    norms = clars.ExampleNorms(model)
    y = model(torch.randn(2, 3))
    y[:, 0].sum().backward(retain_graph=True)
    with pytest.raises(UnsupportedLayerError, match="retain_graph"):
        y[:, 1].sum().backward()
    assert norms.active


def test_loose_parameter_in_an_unknown_function():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.randn(3, 3))

        def forward(self, x):
            return torch.cdist(x, self.mixing)

    refused(Loose(), torch.randn(2, 3), "'mixing' uses its parameters in .*cdist", uncovered="refuse")


@pytest.mark.parametrize(
    "model, x",
    [
        (nn.Conv2d(2, 2, 3), torch.randn(2, 4, 4)),
        (nn.Linear(3, 2), torch.randn(3)),
        (nn.LayerNorm(3), torch.randn(3)),
    ],
)
def test_input_without_a_batch_dimension(model, x):
    refused(model, x, "batch dimension")


@pytest.mark.parametrize("option", ["sparse", "scale_grad_by_freq"])
def test_embedding_options_without_a_rule(option):
    model = nn.Embedding(3, 2, **{option: True})
    refused(model, torch.tensor([[0, 1]]), f"uses {option}=True", uncovered="refuse")


@pytest.mark.filterwarnings("ignore:No fast rule measures")
def test_gradients_scaled_by_how_often_the_batch_looks_up():
    """A single example would scale them otherwise, so that a mask alone tells its part."""
    model, x = nn.Embedding(3, 2, scale_grad_by_freq=True).double(), torch.tensor([[0, 1, 1], [2, 1, 0]])
    assert_measured(model, x, oracle=clars.oracle.mask_norms)


def test_rows_that_differ_where_the_models_forward_is_not_run():
    """Called by parts, the model's own batch is not known; then the layers of one backward pass must agree."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    norms = clars.ExampleNorms(model)
    y = model[1](model[0](torch.randn(3, 4, 3)).reshape(-1, 2, 4))
    with pytest.raises(UnsupportedLayerError, match=r"'0' sees 3 examples where layer '1' sees 6.*views="):
        y.sum().backward()
    norms.remove()


def test_unknown_estimator():
    with pytest.raises(ValueError, match="estimator='none'"):
        clars.ExampleNorms(nn.Linear(2, 2), estimator="none")


def test_input_changed_in_place_is_caught_by_autograd():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            x = x * 1
            y = self.linear(x)
            x.zero_()
            return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        backward_sums(Overwrites(), lambda m, x: m(x).sum(), torch.randn(2, 3))


class Shaped(nn.Module):
    """A function of the input with a weight and a bias of odd shapes."""

    def __init__(self, function, weight, bias=None):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(weight))
        self.bias = None if bias is None else nn.Parameter(torch.randn(bias))

    def forward(self, x):
        return self.function(x, self.weight, self.bias)


@pytest.mark.filterwarnings("ignore:No fast rule measures")
@pytest.mark.parametrize(("weight", "bias"), [((5, 4), (1,)), ((5, 4), (1, 5)), ((4,), None)])
def test_linear_layer_of_odd_shapes(weight, bias):
    model, x = Shaped(nn.functional.linear, weight, bias), torch.randn(3, 4)
    refused(model, x, "has weight and bias of shapes", uncovered="refuse")
    assert_measured(model.double(), x.double(), loss=lambda model, x: model(x).square().sum() / len(x))


def test_layer_norm_whose_weight_has_another_shape():
    """As torch refuses it."""
    model = Shaped(lambda x, weight, bias: nn.functional.layer_norm(x, (8,), weight, bias), (4, 8))
    _tracker = clars.ExampleNorms(model)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        model(torch.randn(3, 4, 8))


class Windows(nn.Module):
    """Folds windows into dimension 0, in the midst of what it is called with."""

    def __init__(self, take):
        super().__init__()
        self.take, self.embed, self.mix = take, nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, batch):
        return self.mix(self.embed(self.take(batch)).reshape(-1, 2, 4))


@dataclass
class Batch:
    x: torch.Tensor


@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (lambda x: {"x": x}, lambda batch: batch["x"]),
        (lambda x: OrderedDict(inner={"x": x}), lambda batch: batch["inner"]["x"]),
        (lambda x: Batch(x), lambda batch: batch.x),
        (lambda x: [(x,)], lambda batch: batch[0][0]),
        (lambda x: types.MappingProxyType({"x": x}), lambda batch: batch["x"]),
    ],
)
def test_the_batch_is_found_in_whatever_holds_it(wrap, take):
    """Its size was unknown, so that windows passed for examples."""
    model, x = Windows(take).double(), torch.randn(3, 4, 3, dtype=torch.double)
    sums, _ = backward_sums(model, squared_loss, wrap(x))
    model.take = lambda batch: batch
    torch.testing.assert_close(sums, clars.oracle.example_norms(model, squared_loss, x), rtol=1e-9, atol=0)


def test_the_batch_of_a_part_that_is_called_by_itself():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Windows(lambda x: x)

    model, x = Outer().double(), torch.randn(3, 4, 3, dtype=torch.double)
    assert_measured(model, x, loss=lambda model, x: squared_loss(model.inner, x))


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return torch.cdist(x, self.near) - torch.cdist(x, self.far)


class Blocks(nn.Module):
    """Things that have no fast rule, around some that have."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Distances() for _ in range(3))
        self.mixing = nn.Parameter(torch.randn(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.cdist(x.mean(1), self.mixing))


def test_all_that_is_refused_is_told_at_once():
    """It took a restart for each."""
    model, x = Blocks(), torch.randn(3, 5, 4)
    optimizer = clars.CLARS(model, lr=8.0, norms=clars.ExampleNorms(model, uncovered="refuse"))
    with pytest.raises(UnsupportedLayerError) as caught:
        model(x)
    parts = [f"blocks.{k}.{part}" for k in range(3) for part in ("near", "far")]
    assert list(caught.value.problems) == ["mixing", *parts]
    told = str(caught.value)
    assert all(repr(layer) in told for layer in caught.value.problems)
    overrides = {pattern: {"adapt": False, "lr": 0.008} for pattern in ("blocks.*", "mixing")}
    assert f"overrides={overrides}" in told
    optimizer = clars.CLARS(model, lr=8.0, overrides=overrides)
    model(x).square().sum().backward()
    optimizer.step()
    assert optimizer.layer_stats()["embed"].example_norm_sum > 0


def test_an_error_of_the_model_itself_comes_first():
    class Broken(Blocks):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("of the model")

    _tracker = clars.ExampleNorms(model := Broken(), uncovered="refuse")
    with pytest.raises(RuntimeError, match="of the model"):
        model(torch.randn(3, 5, 4))


class Mixing(nn.Module):
    """Attends from each example to all others of the batch."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.query(x) @ self.key(x).T)


def test_a_layer_behind_what_mixes_examples():
    refused(Mixing(), torch.randn(5, 3), "'head' sees rows of which it cannot be told which example each belongs to")


def test_the_plan_tells_what_is_refused():
    choices, refused = plan(Mixing(), lambda model, x: model(x).square().sum(), torch.randn(5, 3))
    assert [choice.layer for choice in choices] == ["query", "key"]
    assert list(refused) == ["head"]


def computed_by(change):
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    norms = clars.ExampleNorms(model)
    change(model)
    return model, norms


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: torch.nn.utils.prune.l1_unstructured(model[1], "weight", 0.5),
        lambda model: weight_norm(model[1]),
        lambda model: nn.utils.weight_norm(model[1]),
        lambda model: nn.utils.spectral_norm(model[1]),
        lambda model: torch.nn.utils.parametrize.register_parametrization(model[1], "weight", nn.Tanh()),
    ],
)
def test_a_weight_that_is_computed_since_it_is_tracked(change):
    """A part of the layer's norm was reported as if it were all, or that of the computed weight."""
    model, norms = computed_by(change)
    with pytest.raises(UnsupportedLayerError, match="'1' has a 'weight' that was a parameter"):
        model(torch.randn(5, 6))
    with pytest.raises(UnsupportedLayerError, match="'1' has a 'weight' that was a parameter"):
        norms.sums()


def test_weights_lent_for_a_call():
    """By torch.func.functional_call: computed ones would be measured in the place of parameters; others are not."""
    model, norms = computed_by(lambda model: None)
    x, own = torch.randn(5, 6), dict(model.named_parameters())
    with pytest.raises(UnsupportedLayerError, match="'0' has a 'weight' that was a parameter"):
        torch.func.functional_call(model, {name: 2 * value for name, value in own.items()}, (x,))
    model(x).square().sum().backward()
    expected = norms.sums()
    others = {name: value.detach().clone().requires_grad_() for name, value in own.items()}
    torch.func.functional_call(model, others, (x,)).square().sum().backward()
    torch.testing.assert_close(norms.sums(), expected)
    torch.func.functional_call(model, own, (x,)).square().sum().backward()
    torch.testing.assert_close(norms.sums(), {name: 2 * value for name, value in expected.items()})


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_part():
    """It died on an attribute that scripted modules lack."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
    model = nn.Sequential(nn.Linear(4, 4), scripted)
    with pytest.raises(UnsupportedLayerError, match=r"'1\.0\.weight', '1\.0\.bias': is compiled by torch\.jit\.script"):
        clars.ExampleNorms(model)
    norms = clars.ExampleNorms(model, layers=clars.layers(model)[:1])
    model(torch.randn(5, 4)).sum().backward()
    assert norms.sums()["0"] > 0
