"""Products with a parameter on the right, against the definition and against linear layers."""

import pytest
import torch
from conftest import assert_exact, backward_sums, squared_loss
from torch import nn
from torch.nn import functional as F

import clars
from clars.norms.watch.forward import paused


class Times(nn.Module):
    """A product of activations and a matrix of its own, after a layer."""

    def __init__(self, product, matrix=(5, 4), bias=(4,)):
        super().__init__()
        self.product = product
        self.before = nn.Linear(3, 5)
        self.matrix = nn.Parameter(torch.randn(matrix))
        self.bias = nn.Parameter(torch.randn(bias))

    def forward(self, x):
        return self.product(self.before(x), self.matrix, self.bias)


def folded(product):
    """As GPT-2's layers: positions of all examples as the rows of a matrix, and back."""

    def of_matrices(h, matrix, bias):
        return product(h.view(-1, h.shape[-1]), matrix, bias).view(*h.shape[:-1], -1)

    return of_matrices


POSITIONS = {
    "@": lambda h, matrix, bias: h @ matrix + bias,
    "torch.matmul": lambda h, matrix, bias: torch.matmul(h, matrix) * bias,
    "Tensor.matmul": lambda h, matrix, bias: h.matmul(matrix) + bias,
    "by keyword": lambda h, matrix, bias: torch.matmul(h, other=matrix) + bias,
    "mm, folded": lambda h, matrix, bias: folded(lambda h, matrix, bias: h.mm(matrix))(h, matrix, bias) + bias,
    "addmm, folded": folded(lambda h, matrix, bias: torch.addmm(bias, h, matrix)),
    "addmm by keyword, folded": folded(lambda h, matrix, bias: torch.addmm(input=bias, mat1=h, mat2=matrix)),
    "Tensor.addmm, folded": folded(lambda h, matrix, bias: bias.addmm(h, matrix)),
}
VIEWS = {
    "linear of t()": lambda h, matrix, bias: F.linear(h, matrix.t(), bias),
    "linear of T": lambda h, matrix, bias: F.linear(h, matrix.T, bias),
    "linear of mT": lambda h, matrix, bias: F.linear(h, matrix.mT, bias),
    "@ of a view": lambda h, matrix, bias: h @ matrix.t().unsqueeze(0).squeeze(0).T + bias,
}
ROWS = {
    "mm": lambda h, matrix, bias: h.mm(matrix) + bias,
    "mm by keyword": lambda h, matrix, bias: torch.mm(h, mat2=matrix) + bias,
    "addmm": lambda h, matrix, bias: torch.addmm(bias, h, matrix),
    "addmm, no view of the batch": lambda h, matrix, bias: torch.addmm(bias, h.view(1, *h.shape).tanh()[0], matrix),
}
PRODUCTS = {**POSITIONS, **VIEWS, **ROWS}


def inputs(name, examples=7):
    positions = () if name in ROWS else (3, 2)
    return torch.randn(examples, *positions, 3, dtype=torch.double)


def sums_one_by_one(model, x, group=1):
    """S per layer, from a backward pass of each group's part of the loss."""
    found = clars.layers(model)
    totals = dict.fromkeys([layer.name for layer in found], 0.0)
    for part in x.split(group):
        model.zero_grad()
        (squared_loss(model, part) * len(part) / len(x)).backward()
        for layer in found:
            own = [each.grad.flatten() for each in layer.parameters.values() if each.grad is not None]
            totals[layer.name] += torch.cat(own).norm() if own else 0.0
    model.zero_grad()
    return {name: total for name, total in totals.items() if torch.is_tensor(total)}


@pytest.mark.parametrize("examples", [1, 7])
@pytest.mark.parametrize("name", PRODUCTS)
def test_by_definition(name, examples):
    model, x = Times(PRODUCTS[name]).double(), inputs(name, examples)
    plain = squared_loss(model, x)
    plain.backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    expected = sums_one_by_one(model, x)
    sums, loss = backward_sums(model, squared_loss, x)
    torch.testing.assert_close(loss, plain, rtol=1e-14, atol=0)
    for key, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(key).grad, gradient, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(sums, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", PRODUCTS)
def test_groups_of_examples(name):
    model, x = Times(PRODUCTS[name]).double(), inputs(name)
    sums, _ = backward_sums(model, squared_loss, x, estimator="group", group=3)
    torch.testing.assert_close(sums, sums_one_by_one(model, x, 3), rtol=1e-11, atol=0)


@pytest.mark.parametrize("name", [name for name in PRODUCTS if "folded" not in name])
def test_single_precision_again_and_again(name):
    """The kernels keep a layer for the next call; a matrix whose memory is another by then counts as it is."""
    model, x = Times(PRODUCTS[name]), inputs(name)
    norms = clars.ExampleNorms(model)
    for _ in range(3):
        model.matrix.data = torch.randn(5, 4)
        model.zero_grad()
        squared_loss(model, x.float()).backward()
        sums = {layer: value.double() for layer, value in norms.sums().items()}
        with paused(model):
            expected = sums_one_by_one(model.double(), x)
            model.float()
        torch.testing.assert_close(sums, expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PRODUCTS)
def test_on_an_accelerator(name, dtype, accelerated):
    """By the operators for accelerators, in the plain twins of their kernels."""
    model, x = Times(PRODUCTS[name]).double(), inputs(name)
    expected = sums_one_by_one(model, x)
    sums, _ = backward_sums(model.to(dtype), squared_loss, x.to(dtype), timed=False)
    sums = {layer: value.double() for layer, value in sums.items()}
    torch.testing.assert_close(sums, expected, rtol=3e-6 if dtype == torch.float32 else 1e-9, atol=0)


@pytest.mark.parametrize("name", ["@", "addmm", "addmm, folded", "linear of T"])
def test_autocast(name):
    """Half precision throughout; a norm of so many numbers, each rounded to 8 bits three times, is off by less."""
    model, x = Times(PRODUCTS[name]).double(), inputs(name)
    expected = sums_one_by_one(model, x)

    def loss(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return squared_loss(lambda x: model(x).float(), x)

    sums, _ = backward_sums(model.float(), loss, x.float())
    torch.testing.assert_close({k: v.double() for k, v in sums.items()}, expected, rtol=3 * 2**-8, atol=0)


@pytest.mark.parametrize("name", ["@", "linear of t()", "addmm"])
def test_compiled(name):
    torch._dynamo.reset()
    model, x = Times(PRODUCTS[name]).double(), inputs(name)
    expected, _ = backward_sums(model, squared_loss, x)
    model.zero_grad()
    norms = clars.ExampleNorms(model)
    squared_loss(torch.compile(model, backend="aot_eager", fullgraph=True), x).backward()
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-11, atol=0)
    torch._dynamo.reset()


class Gpt(nn.Module):
    """Blocks of GPT-2, whose linear layers are torch.addmm with the bias first, of positions as rows."""

    def __init__(self):
        super().__init__()
        gpt2 = pytest.importorskip("transformers.models.gpt2.modeling_gpt2")
        sizes = {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 6, "vocab_size": 11}
        still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config = gpt2.GPT2Config(**sizes, **still, attn_implementation="sdpa")
        self.blocks = nn.ModuleList(gpt2.GPT2Block(config, layer_idx=index) for index in range(2))

    def forward(self, x):
        for block in self.blocks:
            y = block(x)
            x = y[0] if isinstance(y, tuple) else y
        return x


def test_gpt2():
    model = Gpt().double()
    x = torch.randn(4, 6, 8, dtype=torch.double)
    sums, _ = backward_sums(model, squared_loss, x)
    assert len(sums) == 2 * (2 + 2 * 4)
    torch.testing.assert_close(sums, sums_one_by_one(model, x), rtol=1e-9, atol=0)


OTHERS = {
    "batched": (lambda h, matrix, bias: h.view(len(h), 1, 3, 10) @ matrix, (1, 10, 4)),
    "on the left": (lambda h, matrix, bias: matrix @ h, (4, 2)),
    "frames": (lambda h, matrix, bias: frames(lambda h: torch.addmm(bias, h, matrix), h), (5, 4)),
}
SLOW = {
    "of a vector": (lambda h, matrix, bias: h.flatten(1, 2) @ matrix, (5,)),
    "twice the bias": (lambda h, matrix, bias: torch.addmm(bias, h[:, 0, 0], matrix, beta=2), (5, 4)),
    "added to activations": (lambda h, matrix, bias: torch.addmm(h[:, 0, 0, :4], h[:, 0, 0], matrix), (5, 4)),
}


def frames(product, h):
    """Multiply the positions of all examples, one of each after the other."""
    turned = h.transpose(0, 1)
    return product(turned.reshape(-1, 5)).view(*turned.shape[:-1], 4).transpose(0, 1)


@pytest.mark.filterwarnings("ignore:No fast rule measures")
@pytest.mark.parametrize("name", {**OTHERS, **SLOW})
def test_other_products(name):
    product, matrix = {**OTHERS, **SLOW}[name]
    model, x = Times(product, matrix).double(), inputs("@")
    expected, norms = sums_one_by_one(model, x), clars.ExampleNorms(model)
    for _ in range(2):  # one that is followed, and one that is not
        model.zero_grad()
        squared_loss(model, x).backward()
        sums = {layer: value for layer, value in norms.sums().items() if layer in expected}
        torch.testing.assert_close(sums, expected, rtol=1e-10, atol=0)
    assert bool(norms.slow_layers) == (name in SLOW)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("of a vector", "uses its parameters in torch.Tensor.matmul"),
        ("twice the bias", "adds and multiplies .* by 2 and 1"),
        ("added to activations", r"adds and multiplies \(7, 4\) and"),
    ],
)
def test_refused_where_nobody_wants_the_slow_rule(name, told):
    model = Times(*SLOW[name]).double()
    _tracker = clars.ExampleNorms(model, uncovered="refuse")
    with pytest.raises(clars.UnsupportedLayerError, match=f"(?s)'matrix'.*{told}"):
        model(inputs("@"))


def test_rows_of_one_example_alone():
    model = Times(lambda h, matrix, bias: h[0, 0] @ matrix + bias).double()
    _tracker = clars.ExampleNorms(model)
    with pytest.raises(clars.UnsupportedLayerError, match=r"(?s)'matrix'.*sees rows of which it cannot be told"):
        model(inputs("@"))


def test_an_input_without_a_batch_dimension():
    model = Times(lambda h, matrix, bias: h @ matrix).double()
    model.before = nn.Identity()
    _tracker = clars.ExampleNorms(model)
    with pytest.raises(clars.UnsupportedLayerError, match=r"'matrix'.*batch dimension"):
        model(torch.randn(5, dtype=torch.double))


def test_equals_a_linear_layer():
    """By the mask oracle, which needs a module that owns both parameters."""

    class Conv1D(nn.Linear):
        def forward(self, x):
            return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight.view(3, 4)).view(*x.shape[:-1], 4)

    assert_exact(nn.Sequential(Conv1D(3, 4)).double(), squared_loss, inputs("addmm, folded"))
