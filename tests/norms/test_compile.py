"""Tracking under torch.compile: one graph, no break, the eager sums."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clars

BACKEND = "aot_eager"  # traces forward and backward as every backend does, and needs no compiler


class Residual(nn.Module):
    """In-place operations, batch statistics, a depthwise convolution, a loose parameter."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x)) * self.scale
        y += x
        return self.head(F.relu_(y).mean((2, 3)))


def batch():
    return torch.randn(6, 3, 8, 8), torch.randint(4, (6,))


def assert_sums(norms, model, compiled, x, y, expected):
    for _ in range(2):  # the first pass compiles
        norms.reset()
        model.zero_grad()
        F.cross_entropy(compiled(x), y).backward()
    for name, total in norms.sums().items():
        torch.testing.assert_close(total, expected[name], rtol=1e-5, atol=0)


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_one_graph_and_the_eager_sums():
    model, (x, y) = Residual(), batch()
    norms = clars.ExampleNorms(model)
    F.cross_entropy(model(x), y).backward()
    eager = norms.sums()
    assert torch._dynamo.explain(model)(x).graph_break_count == 0
    compiled = torch.compile(model, backend=BACKEND, fullgraph=True)
    assert_sums(norms, model, compiled, x, y, eager)


def test_micro_batches_add_up():
    model, (x, y) = Residual().eval(), batch()
    norms = clars.ExampleNorms(model)
    F.cross_entropy(model(x), y).backward()
    whole = norms.sums()
    norms.reset()
    compiled = torch.compile(model, backend=BACKEND)
    for half in (slice(0, 3), slice(3, 6)):
        (F.cross_entropy(compiled(x[half]), y[half]) / 2).backward()
    for name, total in norms.sums().items():
        torch.testing.assert_close(total, whole[name], rtol=1e-5, atol=0)


def test_the_optimizer_takes_the_eager_step():
    ends = []
    for compiles in (False, True):
        torch.manual_seed(0)
        model, (x, y) = Residual(), batch()
        optimizer = clars.CLARS(model, lr=10.0)
        run = torch.compile(model, backend=BACKEND) if compiles else model
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(run(x), y).backward()
            optimizer.step()
        ends.append([parameter.detach() for parameter in model.parameters()])
    for eager, compiled in zip(*ends):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)


def test_a_layer_used_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    model = Twice()
    norms = clars.ExampleNorms(model)
    torch.compile(model, backend=BACKEND)(torch.randn(2, 3)).sum().backward()
    with pytest.raises(clars.UnsupportedLayerError, match=r"'layer'.*more than once"):
        norms.sums()


def test_a_draw_is_not_compiled_in():
    model, (x, y) = Residual(), batch()
    norms = clars.ExampleNorms(model, "subset")
    F.cross_entropy(torch.compile(model, backend=BACKEND)(x), y).backward()
    with pytest.raises(ValueError, match="estimator='subset' draws anew"):
        norms.sums()


def test_a_model_that_breaks_its_graph_itself():
    """Pieces of the forward then run as Python and others compiled; the sums stay right."""

    class Broken(Residual):
        def forward(self, x):
            x = self.stem(x)
            torch._dynamo.graph_break()
            return self.head(self.norm(self.depthwise(x)).mul(self.scale).mean((2, 3)))

    model, (x, y) = Broken(), batch()
    norms = clars.ExampleNorms(model)
    F.cross_entropy(model(x), y).backward()
    eager = norms.sums()
    compiled = torch.compile(model, backend=BACKEND)
    assert_sums(norms, model, compiled, x, y, eager)
