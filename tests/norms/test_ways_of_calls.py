"""Forwards that are not like the one that was followed, and operators that could mislead it: right, or refused."""

import copy

import pytest
import torch
from losses import squared_loss
from networks import Uses
from torch import nn
from torch.utils.checkpoint import checkpoint

import clars
from clars.norms.watch.accumulator import Accumulator


def layers(**more):
    torch.manual_seed(0)
    return {"a": nn.Linear(4, 4), "o": nn.Linear(4, 3)} | more


def double(*shape):
    return torch.randn(*shape, dtype=torch.double)


def take(model, norms, x):
    model.zero_grad()
    squared_loss(model, x).backward()
    expected = clars.oracle.example_norms(model, squared_loss, x)
    for name, value in norms.sums().items():
        torch.testing.assert_close(value.to(expected[name]), expected[name], rtol=1e-9, atol=1e-12)


def tracked(model):
    model = model.double()
    return model, clars.ExampleNorms(model)


@pytest.mark.parametrize("times", [3, 5])
def test_a_layer_that_is_dropped_at_random(times):
    """Sequence first: with as many times as examples, dimension 0 cannot be told from the batch's."""

    def forward(self, x):
        h = self.a(x.transpose(0, 1))
        return (h + self.b(h.tanh()) if self.on else h).mean(0)

    model, norms = tracked(Uses(forward, b=nn.Linear(4, 4), on=False, **layers()))
    x = double(3, times, 4)
    refused = 0
    for step in range(8):
        model.on = step % 3 != 0
        try:
            take(model, norms, x)
        except clars.UnsupportedLayerError as error:
            assert "another way" in str(error)
            refused += 1
    assert refused == 1


def test_a_head_without_a_rule_that_is_turned_on_later():
    def forward(self, x):
        h = self.a(x).tanh()
        return h[:, :3] + torch.einsum("bd,dh->bh", h, self.w) if self.on else h[:, :3]

    model, norms = tracked(Uses(forward, w=nn.Parameter(torch.randn(4, 3)), on=False, a=nn.Linear(4, 4)))
    x = double(4, 4)
    take(model, norms, x)
    model.on = True
    with pytest.raises(clars.UnsupportedLayerError, match="another way"):
        take(model, norms, x)
    with pytest.warns(UserWarning, match="No fast rule"):
        take(model, norms, x)
    take(model, norms, x)


def test_lengths_that_the_model_decides():
    """Sequence first, cut to a length: one of as many times as there are examples cannot be told from the batch."""
    model, norms = tracked(
        Uses(lambda self, x: self.o(x.transpose(0, 1)[: self.length]).tanh().sum(0), length=8, o=nn.Linear(4, 3))
    )
    x = double(3, 9, 4)
    for length in (8, 5, 8):
        model.length = length
        take(model, norms, x)
    model.length = 3
    with pytest.raises(clars.UnsupportedLayerError, match="another way"):
        take(model, norms, x)
    take(model, norms, x)


def test_what_meets_the_batch_outside_of_the_forward_is_refused():
    def forward(self, x):
        self.temperature = [self.scale.exp()]
        return self.o(x)

    model, _norms = tracked(Uses(forward, scale=nn.Parameter(torch.randn(())), o=nn.Linear(4, 3)))
    loss = (model(double(5, 4)) * model.temperature[0]).square().mean()
    with pytest.raises(clars.UnsupportedLayerError, match="'scale' was computed with in the forward"):
        loss.backward()


def test_after_a_refusal_the_next_forward_is_refused_as_well():
    def forward(self, x):
        return torch.stack([self.o(self.a(each).tanh()).mean(0) for each in x])

    model, norms = tracked(Uses(forward, **layers()))
    for _ in range(3):
        with pytest.raises(clars.UnsupportedLayerError, match="cannot be told"):
            take(model, norms, double(4, 4, 4))


def test_after_an_error_the_next_forward_is_followed():
    def forward(self, x):
        h = self.a(x)
        if self.fails:
            raise MemoryError
        return self.o(h.transpose(0, 1)).tanh().mean(0)

    model, norms = tracked(Uses(forward, fails=True, **layers()))
    x = double(4, 4, 4)
    with pytest.raises(MemoryError):
        model(x)
    model.fails = False
    take(model, norms, x)
    take(model, norms, x)


def test_one_parameter_twice_in_one_call():
    def forward(self, x):
        first, last = (self.c.expand(len(x), -1, -1) for _ in range(2))
        return self.o(torch.cat([first, x, last], 1)).tanh().mean(1)

    model, norms = tracked(Uses(forward, c=nn.Parameter(torch.randn(1, 1, 4)), o=nn.Linear(4, 3)))
    take(model, norms, double(3, 2, 4))
    twice = Uses(lambda self, x: nn.functional.layer_norm(x, (4,), self.p, self.p), p=nn.Parameter(torch.randn(4)))
    take(*tracked(twice), double(3, 2, 4))


@pytest.mark.parametrize("examples", [2, 3])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.fft.fft2(x).real,
        lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(len(x), 6, 2, 2)) * 1j).flatten(2),
        lambda x: torch.cat([x.transpose(0, 1), torch.zeros_like(x.transpose(0, 1))]).transpose(0, 1),
    ],
    ids=["FNet", "rotary", "padded"],
)
def test_what_moves_examples(function, examples):
    model = Uses(lambda self, x: self.o(function(x)).tanh().mean(1), o=nn.Linear(4, 3))
    take(*tracked(model), double(examples, 6, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda self, x: self.o(x) + self.o(x.roll(2, 0)).roll(-2, 0),
        lambda self, x: self.o(torch.empty_like(x).index_put_((torch.tensor([2, 0, 1, 3]),), x)),
        lambda self, x: self.o(x.clone().cumsum_(0)),
    ],
    ids=["rolled", "put elsewhere", "summed in place"],
)
def test_what_mixes_examples_is_refused(function):
    model, _norms = tracked(Uses(function, o=nn.Linear(4, 3)))
    with pytest.raises(clars.UnsupportedLayerError, match="cannot be told"):
        model(double(4, 4))


def test_batch_statistics_by_hand():
    """As for a layer of torch: the contribution of an example is what flows through its position."""

    def by_hand(self, x):
        y = self.a(x)
        normal = (y - y.mean(0)) / (y.var(0, unbiased=False) + self.norm.eps).sqrt()
        return self.o(normal * self.norm.weight + self.norm.bias)

    held = layers(norm=nn.BatchNorm1d(4))
    model, norms = tracked(Uses(by_hand, **held))
    twin, expected = tracked(Uses(lambda self, x: self.o(self.norm(self.a(x))), **copy.deepcopy(held)))
    x = double(5, 4)
    for each in (model, twin, model, twin):
        each.zero_grad()
        squared_loss(each, x).backward()
    for name, value in expected.sums().items():
        if name != "norm":  # whose parameters are two layers by hand
            torch.testing.assert_close(norms.sums()[name], value, rtol=1e-9, atol=1e-12)
    assert norms.sums().keys() == expected.sums().keys()


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.wx, self.wh = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, h):
        return torch.tanh(self.wx(x) + self.wh(h))


def test_a_checkpointed_cell_whose_first_state_is_nobodys():
    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h = checkpoint(self.cell, x[:, t], h, use_reentrant=False)
        return self.o(h)

    model, norms = tracked(Uses(forward, cell=Cell(), o=nn.Linear(4, 3)))
    for _ in range(2):
        take(model, norms, double(3, 4, 4))


def test_a_call_without_gradients_before_one_with():
    def forward(self, x):
        with torch.no_grad():
            centre = self.a(self.anchors).mean(0)
        return self.o((self.a(x) - centre).tanh())

    model, norms = tracked(Uses(forward, anchors=nn.Buffer(torch.randn(5, 4)), **layers()))
    for _ in range(3):
        take(model, norms, double(3, 4))


def test_one_example_with_any_number_of_rows():
    model = Uses(lambda self, x: self.o(x[x.sum(-1) > 0].tanh()).sum(0, keepdim=True), o=nn.Linear(4, 3))
    model, norms = tracked(model)
    for _ in range(4):
        take(model, norms, double(1, 6, 4))


def test_results_of_which_some_are_nobodys():
    def forward(self, x):
        wide, x = torch.broadcast_tensors(self.p, x)
        return self.o(wide * x)

    model, _norms = tracked(Uses(forward, p=nn.Parameter(torch.randn(1, 4)), o=nn.Linear(4, 3)))
    with pytest.raises(clars.UnsupportedLayerError, match="broadcast_tensors, of whose results only some"):
        model(double(5, 4))


def test_what_is_used_once_is_not_kept_back(monkeypatch):
    """Under autocast layers in C++ leave it to Python, and were taken for a use that waits.

    A forward whose loss is thrown away may be the first of two; that it was not is known after the next step.
    """
    kept_back, defer = [], Accumulator.defer
    monkeypatch.setattr(Accumulator, "defer", lambda self, *part: (kept_back.append(self.layer), defer(self, *part)))
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    _norms, x = clars.ExampleNorms(model), torch.randn(4, 8)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        y.float().square().sum().backward()
    model(x).square().sum().backward()
    assert not kept_back
    model(x)
    for _ in range(2):
        model(x).square().sum().backward()
    before = len(kept_back)
    for _ in range(3):
        model(x).square().sum().backward()
    assert len(kept_back) == before


@pytest.mark.parametrize(
    "function", [lambda s, x: s.o(torch.sparse.mm(s.m, x.t()).t()), lambda s, x: s.o(x.masked_fill(x > 0, s.p))]
)
@pytest.mark.filterwarnings("ignore:No fast rule", "ignore:Sparse")
def test_odd_operands(function):
    held = {"m": nn.Buffer(torch.eye(4, dtype=torch.double).to_sparse()), "p": nn.Parameter(torch.randn(()))}
    take(*tracked(Uses(function, o=nn.Linear(4, 3), **held)), double(3, 4))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.PReLU(), torch.tensor([[0.0, 1.0], [-1.0, 2.0]])),
        (nn.InstanceNorm1d(4, affine=True, track_running_stats=True), torch.randn(3, 4, 5)),
        pytest.param(
            nn.RMSNorm(8).bfloat16(),
            torch.randn(64, 8, dtype=torch.bfloat16),
            marks=pytest.mark.skipif(torch.__version__ < (2, 11), reason="older torch rounds twice"),
        ),
    ],
    ids=["PReLU of zeros", "running statistics", "RMSNorm in bfloat16"],
)
def test_the_model_stays_what_it_was(layer, x):
    with torch.no_grad():
        next(layer.parameters()).uniform_(0.2, 2.0)
    plain = nn.Sequential(copy.deepcopy(layer))
    model = nn.Sequential(layer)
    _norms = clars.ExampleNorms(model)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = model(one), plain(other)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(y, expected) and torch.equal(one.grad, other.grad)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers()))
