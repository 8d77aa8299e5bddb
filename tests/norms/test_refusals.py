"""What has no exact norm is refused by name, and never added up wrongly."""

import types
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.utils.prune
from conftest import backward_sums
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import clars
from clars import UnsupportedLayerError
from clars.norms.plan import plan


def refused(model, x, match, loss=lambda y: y.sum()):
    with pytest.raises(UnsupportedLayerError, match=match):
        backward_sums(model, lambda model, x: loss(model(x)), x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(3, 3)

    def forward(self, x):
        return self.shared(torch.relu(self.shared(x)))


def test_module_used_twice():
    refused(Twice(), torch.randn(2, 3), "'shared'.*more than once")


@pytest.mark.parametrize("reentrant", [False, True])
def test_module_used_twice_in_checkpointed_parts(reentrant):
    class Recomputed(Twice):
        def forward(self, x):
            for _ in range(2):
                x = torch.utils.checkpoint.checkpoint(self.shared, x, use_reentrant=reentrant)
            return x

    refused(Recomputed(), torch.randn(2, 3, requires_grad=True), "'shared'.*more than once")


def test_two_backward_passes_through_one_forward():
    model = nn.Linear(3, 3)
    norms = clars.ExampleNorms(model)
    y = model(torch.randn(2, 3))
    y[:, 0].sum().backward(retain_graph=True)
    with pytest.raises(UnsupportedLayerError, match="retain_graph"):
        y[:, 1].sum().backward()
    assert norms.active


def test_tied_weights():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(UnsupportedLayerError, match=r"'0.weight' and '1.weight'"):
        clars.ExampleNorms(model)


def test_layer_without_a_rule():
    refused(nn.Sequential(nn.PReLU(2)), torch.randn(3, 2, 4), "'0.weight'.*prelu")


def test_weight_computed_from_parameters():
    refused(nn.Sequential(weight_norm(nn.Linear(3, 2))), torch.randn(2, 3), "original")


def test_weight_standardised_before_use():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = (self.weight - self.weight.mean()) / self.weight.std()
            return self._conv_forward(x, weight, self.bias)

    refused(nn.Sequential(Standardised(2, 2, 3)), torch.randn(2, 2, 4, 4), "'0'.*mean")


def test_batch_folded_into_another_size():
    """Windows folded into dimension 0 look like examples; their norms would be of windows."""

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.embed(x)
            return self.mix(y.reshape(-1, 2, 4)).reshape(len(x), -1)

    refused(Windows(), torch.randn(3, 4, 3), "'mix' sees 6 rows where the model's input has 3")


def test_positions_shared_by_all_examples():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(5, 4), nn.Embedding(6, 4)

        def forward(self, x):
            return self.token(x) + self.position(torch.arange(x.shape[1]))

    refused(Positions(), torch.randint(5, (3, 6)), "rows")


def test_loose_parameter_in_an_unknown_function():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.randn(3, 3))

        def forward(self, x):
            return torch.cdist(x, self.mixing)

    refused(Loose(), torch.randn(2, 3), "'mixing'.*cdist")


def test_two_loose_parameters_combined_before_they_meet_an_example():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(1, 3))

        def forward(self, x):
            return x + (self.a + self.b)

    refused(Loose(), torch.randn(2, 3), "'a'")


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
    refused(nn.Embedding(3, 2, **{option: True}), torch.tensor([[0, 1]]), option)


def test_rows_that_differ_where_the_models_forward_is_not_run():
    """Called by parts, the model's own batch is not known; then the layers of one backward pass must agree."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    norms = clars.ExampleNorms(model)
    y = model[1](model[0](torch.randn(3, 4, 3)).reshape(-1, 2, 4))
    with pytest.raises(UnsupportedLayerError, match="'0' sees 3 rows where layer '1' sees 6"):
        y.sum().backward()
    norms.remove()


class TiedByUse(nn.Module):
    """The output layer borrows the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.linear(torch.tanh(self.mix(self.embed(x).mean(1))), self.embed.weight)


def test_weight_borrowed_by_another_function():
    refused(TiedByUse(), torch.randint(11, (4, 5)), "'embed'.*more than once in one forward pass")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_a_hook_computes_before_the_forward(wrap):
    """Functions of the parameters come between, for which there is no rule."""
    model = nn.Sequential(nn.Linear(6, 4), wrap(nn.Linear(4, 3)))
    optimizer = clars.CLARS(model, lr=1.0)
    with pytest.raises(UnsupportedLayerError, match=r"weight_|in torch\.mv"):
        model(torch.randn(5, 6)).square().sum().backward()
        optimizer.step()


def test_indexing_that_repeats_rows():
    """As many elements come out as went in, and not the same ones."""

    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(3, 6))

        def forward(self, x):
            return nn.functional.linear(x, self.table[torch.tensor([0, 0, 1])])

    refused(Indexed(), torch.randn(4, 6), "'table'.*__getitem__")


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


@pytest.mark.parametrize(("weight", "bias"), [((5, 4), (1,)), ((5, 4), (1, 5)), ((4,), None)])
def test_linear_layer_of_odd_shapes(weight, bias):
    refused(Shaped(nn.functional.linear, weight, bias), torch.randn(3, 4), "has weight and bias of shapes")


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
    model = Windows(take)
    _tracker = clars.ExampleNorms(model)
    with pytest.raises(UnsupportedLayerError, match="'mix' sees 6 rows where the model's input has 3"):
        model(wrap(torch.randn(3, 4, 3)))


def test_the_batch_of_a_part_that_is_called_by_itself():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Windows(lambda x: x)

    model = Outer()
    _tracker = clars.ExampleNorms(model)
    with pytest.raises(UnsupportedLayerError, match=r"'inner\.mix' sees 6 rows where the model's input has 3"):
        model.inner(torch.randn(3, 4, 3))


class Transformer(nn.Module):
    """Two blocks of things that have no rule, around some that have."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.MultiheadAttention(4, 2, batch_first=True) for _ in range(3))
        self.mixing = nn.Parameter(torch.randn(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x, x, x, need_weights=False)[0]
        return self.head(torch.cdist(x.mean(1), self.mixing))


def test_all_that_is_refused_is_told_at_once():
    """It took a restart for each."""
    model, x = Transformer(), torch.randn(3, 5, 4)
    optimizer = clars.CLARS(model, lr=8.0)
    with pytest.raises(UnsupportedLayerError) as caught:
        model(x)
    parts = ("in_proj_weight", "in_proj_bias", "out_proj")
    assert list(caught.value.problems) == ["mixing", *(f"blocks.{k}.{part}" for k in range(3) for part in parts)]
    told = str(caught.value)
    assert all(repr(layer) in told for layer in caught.value.problems)
    overrides = {pattern: {"adapt": False, "lr": 0.008} for pattern in ("blocks.*", "mixing")}
    assert f"overrides={overrides}" in told
    optimizer = clars.CLARS(model, lr=8.0, overrides=overrides)
    model(x).square().sum().backward()
    optimizer.step()
    assert optimizer.layer_stats()["embed"].example_norm_sum > 0


def test_an_error_of_the_model_itself_comes_first():
    class Broken(Transformer):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("of the model")

    _tracker = clars.ExampleNorms(model := Broken())
    with pytest.raises(RuntimeError, match="of the model"):
        model(torch.randn(3, 5, 4))


def test_all_layers_that_are_used_twice_are_told_at_once():
    class AllTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(2):
                x = self.other(torch.relu(self.one(x)))
            return x

    norms = clars.ExampleNorms(model := AllTwice())
    with pytest.raises(UnsupportedLayerError) as caught:
        model(torch.randn(2, 3)).sum().backward()
    assert list(caught.value.problems) == ["one", "other"]
    assert not any(norms.sums().values())


def test_the_plan_tells_what_is_refused():
    choices, refused = plan(Transformer(), lambda model, x: model(x).square().sum(), torch.randn(3, 5, 4))
    assert [choice.layer for choice in choices] == ["embed", "head"]
    assert list(refused)[:2] == ["mixing", "blocks.0.in_proj_weight"]


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
