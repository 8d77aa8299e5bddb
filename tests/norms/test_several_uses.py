"""Several uses of a layer before one backward pass: each example's contributions are summed before the norm."""

import pytest
import torch
from losses import squared_loss
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clars
from clars import native

needs_kernels = pytest.mark.skipif(not native.load().loaded, reason=native.load().text)


@pytest.fixture(params=["processor", "accelerator"])
def way(request):
    """Layers of either kind in C++."""
    if request.param == "accelerator":
        request.getfixturevalue("accelerated")


class Again(nn.Module):
    """Uses its first layer as often as one wants."""

    def __init__(self, times=1):
        super().__init__()
        self.times = times
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        for _ in range(self.times):
            x = torch.tanh(self.first(x))
        return self.last(x)


def backward(loss, model, *batch):
    model.zero_grad()
    loss(model, *batch).backward()


def assert_sums(norms, loss, *batch, rtol=1e-9):
    expected = clars.oracle.example_norms(norms.model, loss, *batch)
    torch.testing.assert_close(norms.sums(), expected, rtol=rtol, atol=0)


def both(model, x, y):
    return squared_loss(model, x) - squared_loss(model, y) / 2


def double(*shape):
    return torch.randn(*shape, dtype=torch.double)


@needs_kernels
@pytest.mark.parametrize("steps", [1, 3])
def test_a_second_use_that_nobody_foresaw(steps, way):
    """Of a layer that C++ made, before the other was known of."""
    model, x = Again(), torch.randn(5, 4)
    norms = clars.ExampleNorms(model)
    for _ in range(steps):
        backward(squared_loss, model, x)
    model.times = 2
    for _ in range(3):
        backward(squared_loss, model, x)
        assert_sums(norms, squared_loss, x, rtol=1e-5)


@needs_kernels
def test_a_second_forward_that_nobody_foresaw(way):
    model, x, y = Again(), torch.randn(5, 4), torch.randn(5, 4)
    norms = clars.ExampleNorms(model)
    for _ in range(3):
        backward(squared_loss, model, x)
    for _ in range(3):
        backward(both, model, x, y)
        assert_sums(norms, both, x, y, rtol=1e-5)


@needs_kernels
def test_an_optimizer_has_both():
    model, x = Again(), torch.randn(5, 4)
    optimizer = clars.CLARS(model, lr=1.0)
    for _ in range(2):
        backward(squared_loss, model, x)
        optimizer.step()
    model.times = 2
    backward(squared_loss, model, x)
    expected = clars.oracle.example_norms(model, squared_loss, x)
    optimizer.step()
    assert optimizer.layer_stats()["first"].example_norm_sum == pytest.approx(float(expected["first"]), rel=1e-5)


def test_uses_that_become_fewer():
    model, x = Again(3).double(), double(5, 4)
    norms = clars.ExampleNorms(model)
    for times in (3, 3, 1, 1, 1, 2, 2):
        model.times = times
        backward(squared_loss, model, x)
        assert_sums(norms, squared_loss, x)


class Siamese(nn.Module):
    """Features and a predictor of what another view's features are."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 4, 1))
        self.predictor = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 4))

    def forward(self, x):
        z = self.features(x).mean((2, 3))
        return self.predictor(z), z


def similarity(p, z):
    return F.cosine_similarity(p, z.detach(), dim=1)


def simsiam(model, x, y):
    (p, z), (q, w) = model(x), model(y)
    return -(similarity(p, w) + similarity(q, z)).mean() / 2


def test_two_views_in_calls_of_their_own():
    """Both views of an example contribute to its gradient."""
    model = Siamese().double()
    norms = clars.ExampleNorms(model)
    for examples in (5, 5, 3):
        x, y = double(examples, 2, 6, 6), double(examples, 2, 6, 6)
        backward(simsiam, model, x, y)
        assert_sums(norms, simsiam, x, y)
        assert {len(squares) for squares in norms.squares().values()} == {examples}


def test_two_views_in_single_precision(way):
    model, x, y = Siamese(), torch.randn(5, 2, 6, 6), torch.randn(5, 2, 6, 6)
    norms = clars.ExampleNorms(model)
    for _ in range(4):
        backward(simsiam, model, x, y)
        assert_sums(norms, simsiam, x, y, rtol=1e-4)


def crops(model, *views):
    """Compare what is predicted from crops of several sizes to what the first has."""
    found = [model(view) for view in views]
    return -sum(similarity(p, found[0][1]) for p, _ in found[1:]).mean() - similarity(found[0][0], found[1][1]).mean()


def test_crops_of_several_sizes():
    model = Siamese().double()
    norms = clars.ExampleNorms(model)
    for examples in (4, 4, 3):
        views = [double(examples, 2, size, size) for size in (8, 8, 5, 5, 3)]
        backward(crops, model, *views)
        assert_sums(norms, crops, *views)


def with_teacher(model, x, y):
    with torch.no_grad():
        _, target = model(x)
    return -similarity(model(y)[0], target).mean()


def test_a_call_without_gradients_beside_one_with():
    model, x, y = Siamese().double(), double(5, 2, 6, 6), double(5, 2, 6, 6)
    norms = clars.ExampleNorms(model)
    for _ in range(3):
        backward(with_teacher, model, x, y)
        assert_sums(norms, with_teacher, x, y)


def test_two_forwards_whose_backward_passes_are_two():
    """What adds up is then the norms, as the passes are of examples of their own."""
    model, x, y = Again(2).double(), double(5, 4), double(3, 4)
    norms = clars.ExampleNorms(model)
    for _ in range(3):
        model.zero_grad()
        losses = [squared_loss(model, part) for part in (x, y)]
        for loss in reversed(losses):
            loss.backward()
        parts = [clars.oracle.example_norms(model, squared_loss, part) for part in (x, y)]
        torch.testing.assert_close(norms.sums(), {k: parts[0][k] + parts[1][k] for k in parts[0]}, rtol=1e-9, atol=0)


class Tied(nn.Module):
    """A table whose rows are looked up, are the output layer's weight, and stand beside the activations."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        h = torch.tanh(self.mix(self.embed(x).mean(1)))
        return self.head(h) + F.linear(h, self.embed.weight.flip(0)) + self.embed.weight.sum(1)


@pytest.mark.parametrize("by", ["module", "parameter"])
def test_one_parameter_in_several_layers(by):
    model, x = Tied().double(), torch.randint(7, (4, 5))
    norms = clars.ExampleNorms(model, layers=clars.layers(model, by), uncovered="refuse")
    expected = clars.oracle.example_norms(model, squared_loss, x, by=by)
    for _ in range(3):
        backward(squared_loss, model, x)
        torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=0)


class Recomputed(Again):
    reentrant = False

    def forward(self, x):
        for _ in range(self.times):
            x = torch.tanh(checkpoint(self.first, x, use_reentrant=self.reentrant))
        return self.last(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_one_layer_in_checkpointed_parts(reentrant):
    model, x = Recomputed(2).double(), double(5, 4).requires_grad_()
    norms = clars.ExampleNorms(model)
    for _ in range(3):
        model.reentrant = reentrant
        backward(squared_loss, model, x)
        model.reentrant = False  # which torch.autograd.grad needs
        assert_sums(norms, squared_loss, x.detach())


class Sum(nn.Module):
    """Parameters that are combined before they meet an example."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.table = (nn.Parameter(torch.randn(*shape)) for shape in ((1, 3), (1, 3), (4, 3)))

    def forward(self, x):
        return F.linear(x + (self.a + self.b), self.table[torch.tensor([0, 0, 3])])  # rows repeated and left out


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Sum, (5, 3)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.utils.weight_norm(nn.Linear(4, 3))), (5, 6)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.utils.spectral_norm(nn.Linear(4, 3))).eval(), (5, 6)),
    ],
    ids=["a sum", "weight norm by a hook", "spectral norm by a hook"],
)
def test_what_is_computed_from_parameters(make, shape):
    model, x = make().double(), double(*shape)
    norms = clars.ExampleNorms(model, uncovered="refuse")
    for _ in range(3):
        backward(squared_loss, model, x)
        assert_sums(norms, squared_loss, x)
