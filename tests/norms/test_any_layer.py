"""What networks do with parameters and with the rows of an example: each against one backward pass per example."""

import warnings

import pytest
import torch
from losses import squared_loss
from networks import Uses
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import clars

B = 3


class Tied(nn.Module):
    """An embedding whose table is the output layer's weight."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.embed(x)))


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape))


def attention(**options):
    return nn.MultiheadAttention(4, 2, **options)


def standardised(self, x):
    weight = self.w - self.w.mean((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight / self.w.std((1, 2, 3), keepdim=True), self.b)


def windows(self, x):
    """Of 2 x 2 pixels [B, 4, 4, C], shifted, with a bias from a table, as in a Swin transformer."""
    rolled = torch.roll(x, (1, 1), (1, 2)).view(-1, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4)
    q, k, v = self.qkv(self.norm(rolled)).chunk(3, -1)
    scores = q @ k.mT + self.table[torch.arange(16).view(4, 4) % 5].sigmoid()
    return (scores.softmax(-1) @ v).view(-1, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(len(x), -1)


def set_in_place(self, x):
    y = self.inner(x)
    y[:, 1] = self.token
    return y


def positions(self, x):
    wide = F.interpolate(self.position.mT, 7, mode="linear").mT
    return self.inner(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + wide)


def dynamic(self, x):
    """A convolution whose kernel is mixed for each example."""
    kernels = (self.router(x.mean((2, 3))).softmax(1) @ self.kernels.flatten(1)).view(-1, 4, 3, 3)
    return F.conv2d(x.flatten(0, 1)[None], kernels, groups=len(x)).view(len(x), -1, 5, 5)


def twice(layer):
    return Uses(lambda self, x: self.layer(self.layer(x).relu()), layer=layer)


def frames(layer):
    """Runs a layer on the frames x [B, T, ...] of all examples, a time after the other."""
    return Uses(
        lambda self, x: self.layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, len(x))).transpose(0, 1),
        layer=layer,
    )


def zeroed(self, x):
    """As a Swin transformer of version 2 has it: keys have no bias."""
    bias = self.inner.bias.clone()
    bias[2:4].zero_()
    return F.linear(x, self.inner.weight, bias)


def zeroed_elsewhere(self, x):
    """A view that was taken before another one is written into."""
    bias = self.inner.bias.clone()
    before = bias.view(-1)
    bias[2:4].zero_()
    return F.linear(x, self.inner.weight, before)


def filled(self, x):
    """Positions, resized for each example by itself."""
    positions = torch.empty_like(x)
    for k in range(len(x)):
        positions[k] = F.interpolate(self.position.mT, 6, mode="linear").mT[0]
    return self.inner(x + positions)


def unpacked(self, x):
    scale, shift = self.rows
    return self.inner(x) * scale + shift


TOKENS, PIXELS = (B, 6, 4), (B, 4, 7, 7)
CASES = {
    "windows": (
        lambda: Uses(windows, qkv=nn.Linear(4, 12), norm=nn.LayerNorm(4), table=parameter(5)),
        (B, 4, 4, 4),
    ),
    "self-attention": (lambda: Uses(lambda s, x: s.a(x, x, x)[0], a=attention(batch_first=True)), TOKENS),
    "sequence first": (
        lambda: Uses(lambda s, x: s.a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), a=attention()),
        TOKENS,
    ),
    "cross-attention": (lambda: Uses(lambda s, x: s.a(x[:, :2], x, x)[0], a=attention(batch_first=True)), TOKENS),
    "attention to added keys": (
        lambda: Uses(
            lambda s, x: s.a(x[:, :2], x[..., :3], x[..., :2], need_weights=False)[0],
            a=attention(kdim=3, vdim=2, add_bias_kv=True, batch_first=True),
        ),
        TOKENS,
    ),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), TOKENS),
    "transformer": (
        lambda: Uses(
            lambda s, x: s.inner(x, x[:, :3]), inner=nn.Transformer(4, 2, 1, 1, 8, dropout=0.0, batch_first=True)
        ),
        TOKENS,
    ),
    "module used twice": (lambda: twice(nn.Linear(4, 4)), TOKENS),
    "convolution used twice": (lambda: twice(nn.Conv2d(4, 4, 3, padding=1, groups=2)), PIXELS),
    "normalisation used twice": (lambda: twice(nn.BatchNorm2d(4).eval()), PIXELS),
    "layer norm used twice": (lambda: twice(nn.LayerNorm(4)), TOKENS),
    "group norm used twice": (lambda: twice(nn.GroupNorm(2, 4)), PIXELS),
    "instance norm used twice": (lambda: twice(nn.InstanceNorm2d(4, affine=True)), PIXELS),
    "transposed used twice": (lambda: twice(nn.ConvTranspose2d(4, 4, 3, padding=1)), PIXELS),
    "tied weights": (Tied, None),
    "standardised weight": (lambda: Uses(standardised, w=parameter(6, 4, 3, 3), b=parameter(6)), PIXELS),
    "normalised weight": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), TOKENS),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)).eval(), TOKENS),
    "PReLU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(6)), TOKENS),
    "RMS norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), TOKENS),
    "matrix on the left": (lambda: Uses(lambda s, x: s.w @ x, w=parameter(2, 6)), TOKENS),
    "set in place": (lambda: Uses(set_in_place, inner=nn.Linear(4, 4), token=parameter(4)), TOKENS),
    "chosen by a mask": (
        lambda: Uses(lambda s, x: torch.where(x > 0, s.t, s.inner(x)), inner=nn.Linear(4, 4), t=parameter(4)),
        TOKENS,
    ),
    "positions of one row": (
        lambda: Uses(
            lambda s, x: s.embed(torch.arange(6)) + s.inner(x), inner=nn.Linear(4, 4), embed=nn.Embedding(6, 4)
        ),
        TOKENS,
    ),
    "resized positions": (
        lambda: Uses(positions, inner=nn.Linear(4, 4), token=parameter(1, 1, 4), position=parameter(1, 5, 4)),
        TOKENS,
    ),
    "queries of nobody": (
        lambda: Uses(
            lambda s, x: F.scaled_dot_product_attention(s.inner(s.query.expand(len(x), -1, -1)), x, x),
            inner=nn.Linear(4, 4),
            query=parameter(1, 2, 4),
        ),
        TOKENS,
    ),
    "repeated token": (
        lambda: Uses(
            lambda s, x: s.inner(torch.cat([s.t.repeat(len(x), 1, 1), x], 1)),
            inner=nn.Linear(4, 4),
            t=parameter(1, 2, 4),
        ),
        TOKENS,
    ),
    "mixture of ways": (
        lambda: Uses(lambda s, x: torch.stack([s.w.softmax(0)[k] * x**k for k in range(3)]).sum(0), w=parameter(3)),
        TOKENS,
    ),
    "cosine head": (
        lambda: Uses(
            lambda s, x: F.linear(F.normalize(x), F.normalize(s.head.weight)) * s.scale.exp(),
            head=nn.Linear(4, 5, bias=False),
            scale=nn.Parameter(torch.tensor(0.3)),
        ),
        TOKENS,
    ),
    "halves of a weight": (
        lambda: Uses(lambda s, x: F.linear(x, s.w[:3]) * F.linear(x, s.w.chunk(2)[1]).sigmoid(), w=parameter(6, 4)),
        TOKENS,
    ),
    "two layers of one parameter": (
        lambda: Uses(lambda s, x: F.linear(x, s.w, s.w.mean(1)), w=parameter(5, 4)),
        TOKENS,
    ),
    "part of a bias set to zero": (lambda: Uses(zeroed, inner=nn.Linear(4, 6)), TOKENS),
    "part of another view set to zero": (lambda: Uses(zeroed_elsewhere, inner=nn.Linear(4, 6)), TOKENS),
    "filled example by example": (lambda: Uses(filled, inner=nn.Linear(4, 4), position=parameter(1, 5, 4)), TOKENS),
    "unpacked": (lambda: Uses(unpacked, inner=nn.Linear(4, 4), rows=parameter(2, 4)), TOKENS),
    "frames": (lambda: frames(nn.Linear(4, 5)), TOKENS),
    "frames normalised": (lambda: frames(nn.GroupNorm(2, 4)), TOKENS),
    "frames convolved": (lambda: frames(nn.Conv2d(4, 6, 3, groups=2)), (B, 2, 4, 5, 5)),
    "dynamic convolution": (lambda: Uses(dynamic, router=nn.Linear(4, 2), kernels=parameter(2, 32, 3, 3)), PIXELS),
}
SLOW_CASES = {
    "LSTM": (lambda: Uses(lambda s, x: s.inner(x)[0], inner=nn.LSTM(4, 3, batch_first=True)), TOKENS),
    "LSTM, stacked, both ways, projected": (
        lambda: Uses(
            lambda s, x: torch.cat([s.inner(x.transpose(0, 1))[0].transpose(0, 1).flatten(1)], 1),
            inner=nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2),
        ),
        TOKENS,
    ),
    "last state of a GRU": (
        lambda: Uses(lambda s, x: s.inner(x)[1].transpose(0, 1), inner=nn.GRU(4, 3, batch_first=True)),
        TOKENS,
    ),
    "RNN": (lambda: Uses(lambda s, x: s.inner(x)[0], inner=nn.RNN(4, 3, batch_first=True)), TOKENS),
    "cell used twice": (lambda: Uses(lambda s, x: s.inner(x[:, 1], s.inner(x[:, 0])), inner=nn.GRUCell(4, 4)), TOKENS),
    "vector on the left": (lambda: Uses(lambda s, x: s.v @ x, v=parameter(6)), TOKENS),
    "vector on the right": (lambda: Uses(lambda s, x: x @ s.v, v=parameter(4)), TOKENS),
    "einsum": (lambda: Uses(lambda s, x: torch.einsum("btd,dk->btk", x, s.w), w=parameter(4, 5)), TOKENS),
    "table looked up by examples": (lambda: Uses(lambda s, x: s.w[(x > 0).sum(2)], w=parameter(5, 3)), TOKENS),
}
ALL = CASES | SLOW_CASES


def made(name):
    torch.manual_seed(0)
    make, shape = ALL[name]
    x = torch.randint(7, (B, 5)) if shape is None else torch.randn(shape, dtype=torch.double)
    return make().double(), x


def tracked(model, **options):
    return clars.ExampleNorms(model, **options)


def assert_sums(norms, model, x, loss=squared_loss, group=1, rtol=1e-9):
    expected = clars.oracle.example_norms(model, loss, x, group=group)
    for name, value in norms.sums().items():
        torch.testing.assert_close(
            value.to(expected[name]), expected[name], rtol=rtol, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


pytestmark = pytest.mark.filterwarnings("ignore:No fast rule measures")


@pytest.mark.parametrize("name", ALL)
def test_each(name):
    """In a forward that is followed, in one that is not, and with another number of examples."""
    model, x = made(name)
    norms = tracked(model)
    for batch in (x, x.flip(0), torch.cat([x, x[:1]])):
        model.zero_grad()
        squared_loss(model, batch).backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        assert_sums(norms, model, batch)
    norms.remove()
    model.zero_grad()
    squared_loss(model, batch).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", SLOW_CASES)
def test_the_slow_rule_says_so(name):
    model, x = made(name)
    norms = tracked(model)
    with pytest.warns(UserWarning, match="No fast rule measures .*backward pass of the layer for each example"):
        model(x)
    assert norms.slow_layers
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)


def test_the_share_of_the_time_is_told_after_ten_steps():
    model, x = made("RNN")
    _norms = tracked(model)
    with pytest.warns(UserWarning, match=r"slow exact rule took \d+% of the time of the last 10 steps, for 4 layers"):
        for _ in range(12):
            squared_loss(model, x).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        squared_loss(model, x).backward()


@pytest.mark.parametrize("name", CASES)
def test_fast_ones_are_never_slow(name):
    model, x = made(name)
    norms = tracked(model, uncovered="refuse")
    squared_loss(model, x).backward()
    assert not norms.slow_layers


@pytest.mark.parametrize("name", SLOW_CASES)
def test_the_slow_rule_is_refused_where_nobody_wants_it(name):
    model, x = made(name)
    _norms = tracked(model, uncovered="refuse")
    with pytest.raises(clars.UnsupportedLayerError, match="for which there is no fast rule"):
        model(x)


@pytest.mark.parametrize("name", ALL)
def test_groups(name):
    model, x = made(name)
    norms = tracked(model, estimator="group", group=2)
    squared_loss(model, x).backward()
    assert_sums(norms, model, x, group=2)


def assert_drawn(model, x, rtol):
    """What is drawn has the squares that are measured with all."""
    norms = tracked(model)
    squared_loss(model, x).backward()
    every = norms.squares()
    norms = tracked(model, estimator="subset", fraction=1 / 3)
    for _ in range(3):
        model.zero_grad()
        squared_loss(model, x).backward()
        drawn = norms.squares()
        for layer, squares in every.items():
            assert any(torch.allclose(drawn[layer], squares[k : k + 1], rtol=rtol) for k in range(B)), layer


@pytest.mark.parametrize("name", ALL)
def test_a_part_of_the_batch(name):
    assert_drawn(*made(name), rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["windows", "frames", "frames normalised", "frames convolved", "convolution used twice"]
)
def test_a_part_of_the_batch_by_the_kernels(name):
    model, x = made(name)
    assert_drawn(model.float(), x.float(), rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_accumulation(name):
    model, x = made(name)
    norms = tracked(model)
    for part in (x[:2], x[2:], x[1:]):
        squared_loss(model, part).backward()
    total = norms.sums()
    one_by_one = {layer: 0.0 for layer in total}
    for part in (x[:2], x[2:], x[1:]):
        for layer, value in clars.oracle.example_norms(model, squared_loss, part).items():
            one_by_one[layer] = one_by_one[layer] + value
    torch.testing.assert_close(total, one_by_one, rtol=1e-9, atol=1e-12)


def recomputed(self, x):
    x = self.begin * x if x.is_floating_point() else x
    return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_checkpointing(name, reentrant):
    model, x = made(name)
    outer = Uses(recomputed, inner=model, begin=nn.Parameter(torch.ones((), dtype=torch.double)))
    if not x.is_floating_point() and reentrant:
        pytest.skip("a reentrant checkpoint needs an input with a gradient")
    norms = tracked(outer)
    for batch in (x, x.flip(0)):
        outer.reentrant = reentrant
        outer.zero_grad()
        squared_loss(outer, batch).backward()
        outer.reentrant = False  # which torch.autograd.grad needs
        assert_sums(norms, outer, batch)


@pytest.mark.parametrize("memory", [1, 2000])
@pytest.mark.parametrize("name", ["windows", "standardised weight", "tied weights", "convolution used twice", "LSTM"])
def test_in_pieces(name, memory):
    model, x = made(name)
    norms = tracked(model, memory=memory)
    squared_loss(model, x).backward()
    assert_sums(norms, model, x)


@pytest.mark.parametrize("name", ["windows", "self-attention", "standardised weight", "tied weights", "cosine head"])
def test_autocast(name):
    """The norms are those of the gradients that bfloat16 leaves."""
    model, x = made(name)
    model, x = model.float(), x.float() if x.is_floating_point() else x

    def loss(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return squared_loss(model, x)

    norms = tracked(model)
    loss(model, x).backward()
    assert_sums(norms, model, x, loss, rtol=0.1)


@pytest.mark.parametrize("name", CASES)
def test_by_the_kernels(name):
    """In float32, by layers in C++ where there are some."""
    if name == "set in place" and torch.__version__ < (2, 11):
        pytest.skip("older torch takes what a layer in C++ puts out for a view, which nobody may change in place")
    model, x = made(name)
    expected = clars.oracle.example_norms(model, squared_loss, x)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    norms = tracked(model)
    for _ in range(3):
        model.zero_grad()
        squared_loss(model, x).backward()
        for layer, value in norms.sums().items():
            torch.testing.assert_close(value.double(), expected[layer], rtol=1e-4, atol=1e-5)


def test_a_parameter_as_a_layer():
    model, x = made("windows")
    norms = tracked(model, layers=clars.layers(model, "parameter"))
    squared_loss(model, x).backward()
    expected = clars.oracle.example_norms(model, squared_loss, x, by="parameter")
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=1e-12)
