"""Groups of examples: every kind of layer and method by the definition, and what lies between CLARS and LARS."""

import copy

import pytest
import torch
from conftest import backward_sums, gradient_norms, squared_loss
from torch import nn
from torch.nn.functional import cross_entropy

import clars
from clars.norms.methods import METHODS
from clars.norms.methods.groups import number, summed
from clars.norms.methods.method import slices

KINDS = {
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (7, 4, 9, 8)),
    "conv of one position": (nn.Conv2d(4, 6, 1), (7, 4, 5, 6)),
    "conv, every other position": (nn.Conv2d(4, 6, 1, stride=2), (7, 4, 5, 6)),
    "conv of one position, padded": (nn.Conv2d(4, 6, 1, padding=1), (7, 4, 5, 6)),
    "conv in groups of channels": (nn.Conv2d(8, 6, 3, groups=2, bias=False), (7, 8, 6, 5)),
    "depthwise": (nn.Conv2d(5, 10, 3, padding=1, groups=5), (7, 5, 6, 5)),
    "conv in one dimension": (nn.Conv1d(4, 6, 3, dilation=2), (7, 4, 12)),
    "conv in three dimensions": (nn.Conv3d(3, 2, 2), (7, 3, 4, 5, 3)),
    "linear": (nn.Linear(5, 4), (7, 5)),
    "linear, positions": (nn.Linear(5, 4), (7, 3, 2, 5)),
    "batch norm": (nn.BatchNorm2d(4), (7, 4, 5, 6)),
    "layer norm": (nn.LayerNorm((4, 3)), (7, 5, 4, 3)),
    "group norm": (nn.GroupNorm(2, 4), (7, 4, 5, 6)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), (7, 4, 5, 6)),
    "embedding": (nn.Embedding(4, 3, padding_idx=1), (7, 6)),
}
METHODS_OF_KINDS = ("ordinary", "matrix", "gram", "grouped")  # of convolutions and linear layers
CASES = [(kind, group, "estimated") for kind in KINDS for group in (2, 3, 7)]
CASES += [
    (kind, 3, method) for kind in KINDS if kind.startswith(("conv", "depth", "linear")) for method in METHODS_OF_KINDS
]


def inputs(kind, shape):
    if kind == "embedding":
        return torch.randint(4, shape, generator=torch.Generator().manual_seed(0))
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "group", "method"), CASES)
def test_by_definition(kind, group, method, monkeypatch):
    """In float64, by masks that leave one group of the output gradient; each method in turn, whatever its estimate."""
    for one in METHODS:
        if one.name == method:
            monkeypatch.setattr(one, "operations", lambda sizes: 0.0)
    layer, shape = copy.deepcopy(KINDS[kind][0]), KINDS[kind][1]
    model = nn.Sequential(layer).double()
    x = inputs(kind, shape)
    expected = clars.oracle.mask_norms(model, squared_loss, x, group=group)
    model.zero_grad()
    squared_loss(model, x).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    sums, _ = backward_sums(model, squared_loss, x, estimator="group", group=group)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=0)
    for parameter, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-13)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, groups=8),
        nn.GroupNorm(2, 8), nn.Flatten(), nn.LayerNorm(8 * 16), nn.Linear(8 * 16, 4),
    ).to(dtype)  # fmt: skip


def loss_of(model, x, y):
    return cross_entropy(model(x), y)


def batch(examples=10, dtype=torch.float32):
    made = torch.Generator().manual_seed(1)
    return torch.randn(examples, 3, 6, 6, generator=made).to(dtype), torch.randint(4, (examples,), generator=made)


def test_groups_of_one_are_exact_bit_for_bit():
    one, _ = backward_sums(network(), loss_of, *batch(), estimator="group", group=1)
    exact, _ = backward_sums(network(), loss_of, *batch())
    assert one == exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_from_single_examples_to_the_gradient(dtype):
    """||g|| <= S of g <= S of a divisor of g <= S of one example."""
    model = network(dtype)
    sums = {}
    for group in (1, 2, 4, 8, 16):
        model.zero_grad()
        sums[group], _ = backward_sums(model, loss_of, *batch(16, dtype), estimator="group", group=group)
    rounding = 1e-12 if dtype == torch.float64 else 2e-6
    for name, norm in gradient_norms(model).items():
        torch.testing.assert_close(sums[16][name], norm, rtol=rounding, atol=0)
        for small, large in zip((1, 2, 4, 8), (2, 4, 8, 16)):
            assert sums[large][name] <= sums[small][name] * (1 + rounding)


def test_groups_do_not_reach_over_micro_batches():
    """Two passes of 5 in groups of 3: 3, 2, 3, 2; and their numbers are what the statistics are formed from."""
    model, (x, y) = network(torch.float64), batch(10, torch.float64)
    norms = clars.ExampleNorms(model, "group", group=3)
    parts = []
    for rows in (slice(5), slice(5, 10)):
        loss_of(model, x[rows], y[rows]).backward()
        parts.append((x[rows], y[rows]))
    sums, totals = norms.sums(), norms.totals()
    norms.remove()
    expected = [clars.oracle.mask_norms(network(torch.float64), loss_of, *part, group=3) for part in parts]
    for name, total in totals.items():
        torch.testing.assert_close(sums[name], expected[0][name] + expected[1][name], rtol=1e-9, atol=0)
        assert total[2:].tolist() == [10, 9 + 4 + 9 + 4]
        assert len(norms.squares()[name]) == 4


def test_checkpointed_and_compiled_parts_have_the_same_groups():
    x, y = batch(10, torch.float64)
    expected, _ = backward_sums(network(torch.float64), loss_of, x, y, estimator="group", group=4)
    model = network(torch.float64)
    for reentrant in (True, False):

        def loss(model, x, y, reentrant=reentrant):
            hidden = torch.utils.checkpoint.checkpoint(model[:4], x.requires_grad_(), use_reentrant=reentrant)
            return cross_entropy(model[4:](hidden), y)

        model.zero_grad()
        sums, _ = backward_sums(model, loss, x.clone(), y, estimator="group", group=4)
        torch.testing.assert_close(sums, expected, rtol=1e-9, atol=0)
    model.zero_grad()
    norms = clars.ExampleNorms(model, "group", group=4)
    compiled_model = torch.compile(model, backend="aot_eager")
    loss_of(compiled_model, x, y).backward()
    torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=0)
    assert all(total[2:].tolist() == [10, 16 + 16 + 4] for total in norms.totals().values())


def test_what_is_compiled_for_any_batch_size_has_groups_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).double()
    norms = clars.ExampleNorms(model, "group", group=4)
    compiled_model = torch.compile(model, backend="aot_eager", dynamic=True)
    for examples in (10, 12, 7):
        x, y = batch(examples, torch.float64)
        model.zero_grad()
        loss_of(compiled_model, x, y).backward()
        expected = clars.oracle.mask_norms(model, loss_of, x, y, group=4)
        torch.testing.assert_close(norms.sums(), expected, rtol=1e-9, atol=0)


def test_autocast_and_a_loss_scale():
    x, y = batch(10)
    expected = clars.oracle.mask_norms(network(torch.float64), loss_of, x.double(), y, group=4)

    def loss(model, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            return 1024 * cross_entropy(model(x), y)

    sums, _ = backward_sums(network(), loss, x, y, estimator="group", group=4)
    for name, value in expected.items():
        torch.testing.assert_close(sums[name].double() / 1024, value, rtol=3e-2, atol=0)


def test_memory_is_bounded_in_whole_groups():
    assert slices(10, 100, 250, 2) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert slices(11, 100, 250, 3) == [slice(0, 6), slice(6, 9), slice(9, 11)]
    assert slices(5, 100, 1, 5) == [slice(0, 5)]


def test_sums_over_groups():
    terms = torch.arange(14.0).view(7, 2)
    assert summed(terms, 3).tolist() == [[6, 9], [24, 27], [12, 13]]
    assert summed(terms, 9).tolist() == [[42, 49]]
    assert number(7, 3) == 3


@pytest.mark.parametrize("group", [0, -1, 2.5, True, "8"])
def test_a_group_is_a_whole_number_above_zero(group):
    for make in (
        lambda: clars.ExampleNorms(network(), "group", group=group),
        lambda: clars.CLARS(network(), lr=1.0, estimator="group", group=group),
    ):
        with pytest.raises(ValueError, match=f"group={group!r}.*whole number above 0"):
            make()


@pytest.mark.parametrize("estimator", ["group", "subset"])
def test_a_group_and_a_fraction_do_not_go_together(estimator):
    with pytest.raises(ValueError, match=r"fraction=0\.5 and group=4 together"):
        clars.ExampleNorms(network(), estimator, group=4, fraction=0.5)


@pytest.mark.parametrize(
    ("estimator", "options"), [("exact", {"group": 4}), ("subset", {"group": 4}), ("group", {"fraction": 0.5})]
)
def test_an_option_of_another_estimator_warns(estimator, options):
    with pytest.warns(UserWarning, match=f"{next(iter(options))} has no effect on estimator='{estimator}'") as caught:
        clars.ExampleNorms(network(), estimator, **options)
    assert caught[0].filename == __file__


def test_norms_that_are_given_have_an_estimator_already():
    model = network()
    with pytest.raises(ValueError, match="belong to the ExampleNorms given as norms"):
        clars.CLARS(model, lr=1.0, norms=clars.ExampleNorms(model), group=4)


def test_a_batch_smaller_than_a_group_is_one_and_said_once():
    model = network(torch.float64)
    norms = clars.ExampleNorms(model, "group", group=16)
    with pytest.warns(UserWarning, match="10 examples is one group, smaller than group=16") as caught:
        for _ in range(3):
            model.zero_grad()
            loss_of(model, *batch(10, torch.float64)).backward()
    assert len(caught) == 1
    for name, norm in gradient_norms(model).items():
        torch.testing.assert_close(norms.sums()[name], norm, rtol=1e-12, atol=0)


def test_statistics_of_groups():
    """The unbiased estimates know how large each group was; of one group there are none."""
    for group, known in ((4, True), (10, False)):
        model = network(torch.float64)
        optimizer = clars.CLARS(model, lr=1e-3, estimator="group", group=group)
        loss_of(model, *batch(10, torch.float64)).backward()
        squares = {name: value.sum() for name, value in optimizer.norms.squares().items()}
        norms = gradient_norms(model)
        optimizer.step()
        for name, stats in optimizer.layer_stats().items():
            assert (stats.noise_scale is None) == (stats.variance_factor is None) == (not known)
            if known:
                true = (norms[name] ** 2 - squares[name]) / (1 - (16 + 16 + 4) / 100)
                trace = 10 * (norms[name] ** 2 - true)
                assert stats.variance_factor == pytest.approx(float((trace + true) / norms[name] ** 2), rel=1e-9)
                noise = float(trace / true) if true > 0 else float("inf")
                assert stats.noise_scale == pytest.approx(noise, rel=1e-6)
