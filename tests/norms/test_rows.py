"""Where a user says whose rows are whose, and what is refused where nobody can tell."""

import pytest
import torch
from losses import squared_loss
from torch import nn

import clars

B = 3


class Folded(nn.Module):
    """Runs a layer on rows of all examples, and gives each example its own back."""

    def __init__(self, fold, unfold, inner=None):
        super().__init__()
        self.fold, self.unfold = fold, unfold
        self.inner = nn.Linear(4, 5) if inner is None else inner

    def forward(self, x):
        return self.unfold(self.inner(self.fold(x)), len(x))


def consecutive(x):
    return x.flatten(0, 1)


def in_turns(x):
    return x.transpose(0, 1).flatten(0, 1)


FOLDS = {
    "(b n)": (consecutive, lambda y, b: y.unflatten(0, (b, -1))),
    "(n b)": (in_turns, lambda y, b: y.unflatten(0, (-1, b)).transpose(0, 1)),
    "n b": (lambda x: x.transpose(0, 1), lambda y, b: y.transpose(0, 1)),
    "b": (lambda x: x, lambda y, b: y),
}


def rows(examples=B, dtype=torch.double):
    return torch.randn(examples, 6, 4, dtype=dtype)


@torch.library.custom_op("test_rows::copied", mutates_args=())
def copied(x: torch.Tensor) -> torch.Tensor:
    """Somebody's own operator, which may do anything to the examples."""
    return x.clone()


copied.register_autograd(lambda ctx, gradient: gradient)


def hidden(fold):
    return lambda x: copied(fold(x))


def assert_sums(norms, model, loss, *batch, **options):
    expected = clars.oracle.example_norms(model, loss, *batch, **options)
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("words", FOLDS)
def test_words_say_what_is_followed_anyway(words):
    for told in ({}, {"inner": words}):
        model = Folded(*FOLDS[words]).double()
        norms = clars.ExampleNorms(model, rows=told)
        for x in (rows(), rows(), rows(5)):
            model.zero_grad()
            squared_loss(model, x).backward()
            assert_sums(norms, model, squared_loss, x)


@pytest.mark.parametrize("words", FOLDS)
def test_words_say_what_cannot_be_followed(words):
    fold, unfold = FOLDS[words]
    model = Folded(hidden(fold), unfold).double()
    norms = clars.ExampleNorms(model)
    with pytest.raises(clars.UnsupportedLayerError, match=r"'inner' sees rows of which it cannot be told .* say so"):
        model(rows())
    norms = clars.ExampleNorms(model, rows={"inn*": words})
    for x in (rows(), rows(), rows(5)):
        model.zero_grad()
        squared_loss(model, x).backward()
        assert_sums(norms, model, squared_loss, x)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("n", "'n' does not tell where the examples are: write"),
        ("", "'' does not tell where the examples are: write"),
        ("(b b)", "does not tell where the examples are"),
        ("b (b n)", "does not tell where the examples are"),
        ("(k b n m)", "does not tell where the examples are"),
        ("(n b m)", "of rows before and after 'b' one cannot tell how many are which"),
        ("n m k b", r"does not fit an input of shape \(18, 4\) and 3 examples"),
        ("n b", r"does not fit an input of shape \(18, 4\) and 3 examples"),
        ("b", r"dimension 0 of \(18, 4\) has more than 3 rows"),
    ],
)
def test_words_that_do_not_fit(words, told):
    model = Folded(*FOLDS["(b n)"]).double()
    _tracker = clars.ExampleNorms(model, rows={"inner": words})
    with pytest.raises(clars.UserError, match=f"(?s)rows=.*{told}"):
        model(rows())


def test_a_pattern_that_fits_no_layer():
    with pytest.raises(ValueError, match=r"rows: no tracked layer's name fits 'iner'\. Did you mean 'inner'"):
        clars.ExampleNorms(Folded(*FOLDS["b"]), rows={"iner": "(b n)"})


@pytest.mark.parametrize("views", [0, -1, 1.0, True, "2"])
def test_views_that_are_no_number(views):
    with pytest.raises(ValueError, match="is not a number of views"):
        clars.ExampleNorms(nn.Linear(2, 2), views=views)


class Siamese(nn.Module):
    """Compares two views of each example, which stand one after the other in one batch."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))
        self.scale = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return self.features(x) * self.scale


def contrast(model, x):
    """A mean over the examples of x [views, B, ...], of a loss that ties the views of each."""
    one, other = model(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return (one * other.tanh() - one.square() * 0.1).flatten(1).sum(1).mean()


def one_by_one(model, x, loss=contrast):
    """S_k by a backward pass of each example's loss."""
    return clars.oracle.example_norms(model, lambda model, x: loss(model, x.transpose(0, 1)), x.transpose(0, 1))


def test_two_views_in_one_call():
    model = Siamese().double()
    norms = clars.ExampleNorms(model, views=2)
    for examples in (B, B, 5):
        x = torch.randn(2, examples, 4, dtype=torch.double)
        expected = one_by_one(model, x)
        model.zero_grad()
        contrast(model, x).backward()
        torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=0)
        assert {len(squares) for squares in norms.squares().values()} == {examples}


def test_two_views_in_single_precision():
    """By the layers in C++, where there are any."""
    model, x = Siamese(), torch.randn(2, 8, 4)
    norms = clars.ExampleNorms(model, views=2)
    expected = one_by_one(model, x)
    for _ in range(4):
        model.zero_grad()
        contrast(model, x).backward()
        torch.testing.assert_close(norms.sums(), expected, rtol=1e-5, atol=0)


def test_groups_of_examples_of_two_views():
    model, x = Siamese().double(), torch.randn(2, 5, 4, dtype=torch.double)
    norms = clars.ExampleNorms(model, "group", group=2, views=2)
    turned = x.transpose(0, 1)
    expected = clars.oracle.example_norms(model, lambda model, x: contrast(model, x.transpose(0, 1)), turned, group=2)
    for _ in range(2):
        model.zero_grad()
        contrast(model, x).backward()
        torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=0)


def test_views_that_do_not_divide_the_batch():
    model = Siamese()
    _tracker = clars.ExampleNorms(model, views=2)
    with pytest.raises(clars.UserError, match="views=2 does not divide a batch of 5 rows"):
        model(torch.randn(5, 4))


class Conditioned(nn.Module):
    """Sees a table before the batch, of another first dimension."""

    def __init__(self):
        super().__init__()
        self.inner, self.of_table = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, table, x, deep=False):
        y = self.inner(x)
        return y + self.of_table(table).mean(0) if deep else y * table.sum()


def test_the_batch_by_the_name_of_an_argument():
    model, table, x = Conditioned().double(), torch.randn(6, 2, dtype=torch.double), rows()
    layers = clars.layers(model)[:1]
    norms = clars.ExampleNorms(model, batch="x", layers=layers)
    expected = clars.oracle.example_norms(model, lambda model, x: squared_loss(lambda x: model(table, x), x), x)
    for called in (lambda x: model(table, x), lambda x: model(x=x, table=table), lambda x: model(table, x=x)):
        model.zero_grad()
        squared_loss(called, x).backward()
        torch.testing.assert_close(norms.sums(), {"inner": expected["inner"]}, rtol=1e-9, atol=0)


def test_a_name_that_is_no_argument():
    _tracker = clars.ExampleNorms(model := Conditioned().double(), batch="y")
    with pytest.raises(clars.UserError, match="batch='y' is no argument that the model was called with"):
        model(torch.randn(6, 2, dtype=torch.double), rows())


def test_a_layer_of_an_input_that_is_no_batch():
    model = Conditioned().double()
    _tracker = clars.ExampleNorms(model, batch="x")
    with pytest.raises(clars.UnsupportedLayerError, match=r"'of_table' sees an input .* is not the batch's 3"):
        model(torch.randn(6, 2, dtype=torch.double), rows(), deep=True)
