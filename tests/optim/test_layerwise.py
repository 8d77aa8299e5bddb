"""The shared step: its formulas, its reductions to known optimizers, and what it refuses."""

import copy

import pytest
import timm.optim
import torch
from conftest import squared_loss
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

import clars
from clars.optim.momentum import MomentumOptimizer


def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 3))


def images(n=6):
    return torch.randn(n, 2, 5, 5)


def train(model, optimizer, batches, schedule=None):
    for x in batches:
        optimizer.zero_grad()
        squared_loss(model, x).backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return [p.detach().clone() for p in model.parameters()]


class Plain(MomentumOptimizer):
    """Every ratio is 1: what is left of the step must be stochastic gradient descent."""

    def __init__(self, model, lr, momentum=0.9, weight_decay=5e-4, nesterov=True):
        super().__init__(
            model,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=1.0,
            nesterov=nesterov,
            layers="module",
            overrides={"*": {"adapt": False}},
            eps=0.0,
            norm_floor=0.0,
        )

    def denominators(self, gradient_norms, totals):
        return torch.ones_like(gradient_norms)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_ratio_one_is_sgd_bit_for_bit(nesterov, momentum, weight_decay):
    """With the rate inside the buffer the bits agree where the rate is a power of two, which rounds nothing."""
    model, batches = network(), [images() for _ in range(5)]
    twin = copy.deepcopy(model)
    ours = train(model, Plain(model, 2**-5, momentum, weight_decay, nesterov), batches)
    sgd = torch.optim.SGD(
        twin.parameters(), 2**-5, momentum, weight_decay=weight_decay, nesterov=nesterov and momentum > 0
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, train(twin, sgd, batches)))


def test_ratio_one_is_sgd_at_any_rate():
    model, batches = network().double(), [images().double() for _ in range(5)]
    twin = copy.deepcopy(model)
    sgd = torch.optim.SGD(twin.parameters(), 0.03, 0.9, weight_decay=5e-4, nesterov=True)
    expected = train(twin, sgd, batches)
    torch.testing.assert_close(train(model, Plain(model, 0.03), batches), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("nesterov", [True, False])
def test_lars_is_timms_at_constant_rate(nesterov):
    """The definitions agree for one tensor per layer, with no layer at norm zero and none left out."""
    model, batches = network().double(), [images().double() for _ in range(5)]
    nn.init.normal_(model[1].bias)
    twin = copy.deepcopy(model)
    ours = clars.LARS(model, 1.5, weight_decay=0.01, nesterov=nesterov, layers="parameter", eps=1e-8)
    theirs = timm.optim.Lars(
        twin.parameters(), 1.5, 0.9, weight_decay=0.01, nesterov=nesterov, trust_coeff=1e-3, always_adapt=True, eps=1e-8
    )
    torch.testing.assert_close(train(model, ours, batches), train(twin, theirs, batches), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [clars.CLARS, clars.LARS])
def test_the_formula(method):
    """One step from rest, written out, over weight and bias of a module together."""
    model, x = network().double(), images().double()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sums = clars.oracle.mask_norms(copy.deepcopy(model), squared_loss, x)
    optimizer = method(model, lr=3.0, momentum=0.9, weight_decay=0.01, trust_coefficient=0.002)
    squared_loss(model, x).backward()
    optimizer.step()
    for layer in clars.layers(model):
        names = [f"{layer.name}.{name}" for name in layer.parameters]
        w = torch.cat([before[name].flatten() for name in names]).norm()
        g = torch.cat([p.grad.flatten() for p in layer.parameters.values()]).norm()
        bottom = sums[layer.name] if method is clars.CLARS else g
        ratio = 0.002 * w / (bottom + 0.01 * w + 1e-8)
        for name, p in zip(names, layer.parameters.values()):
            change = 3.0 * ratio * (p.grad + 0.01 * before[name])
            torch.testing.assert_close(p.detach(), before[name] - 1.9 * change, rtol=1e-10, atol=1e-14)


def test_the_rate_is_inside_the_buffer():
    """After the rate falls to zero, a heavy ball rolls on as fast as before."""
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    optimizer = clars.CLARS(model, lr=10.0, weight_decay=0.0, nesterov=False)
    start = model.weight.detach().clone()
    squared_loss(model, x).backward()
    optimizer.step()
    first = model.weight.detach() - start
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.zero_grad()
    squared_loss(model, x).backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach() - start - first, 0.9 * first, rtol=1e-12, atol=1e-15)


def test_clars_never_moves_faster_than_lars():
    torch.manual_seed(3)
    model = network().double()
    twin = copy.deepcopy(model)
    a, b = clars.CLARS(model, lr=1.0), clars.LARS(twin, lr=1.0)
    for _ in range(5):
        x = images().double()
        for net, optimizer in ((model, a), (twin, b)):
            optimizer.zero_grad()
            squared_loss(net, x).backward()
            optimizer.step()
        ours, theirs = a.layer_stats(), b.layer_stats()
        assert all(ours[name].ratio <= theirs[name].ratio for name in ours)
        twin.load_state_dict(model.state_dict())


def test_one_example_makes_clars_lars():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    twin, x = copy.deepcopy(model), [torch.randn(1, 3).double() for _ in range(5)]
    torch.testing.assert_close(
        train(model, clars.CLARS(model, lr=2.0), x), train(twin, clars.LARS(twin, lr=2.0), x), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("method", [clars.CLARS, clars.LARS])
def test_scaling_the_loss_changes_nothing_without_weight_decay(method):
    model, x = network().double(), images().double()
    results = []
    for scale in (1.0, 1024.0):
        twin = copy.deepcopy(model)
        optimizer = method(twin, lr=1.0, weight_decay=0.0, eps=0.0)
        (scale * squared_loss(twin, x)).backward()
        optimizer.step()
        results.append(list(twin.parameters()))
    torch.testing.assert_close(*results, rtol=1e-13, atol=0)


def test_rate_and_trust_coefficient_enter_as_their_product():
    model, batches = network().double(), [images().double() for _ in range(4)]
    twin = copy.deepcopy(model)
    one = train(model, clars.CLARS(model, lr=8.0, trust_coefficient=1e-3), batches)
    two = train(twin, clars.CLARS(twin, lr=1.0, trust_coefficient=8e-3), batches)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)


def test_a_layer_of_zeros_trains_at_the_floor():
    model = network()
    model[:4].requires_grad_(False)  # else the layers before it grow instead
    nn.init.zeros_(model[4].weight)
    nn.init.zeros_(model[4].bias)
    optimizer = clars.CLARS(model, lr=10.0, weight_decay=0.0, momentum=0.0)
    squared_loss(model, images()).backward()
    optimizer.step()
    stats = optimizer.layer_stats()["4"]
    floor = 1e-3 * (36 * 3 + 3) ** 0.5
    assert stats.weight_norm == 0
    assert stats.ratio == pytest.approx(1e-3 * floor / stats.example_norm_sum, rel=1e-5)
    moved = torch.cat([model[4].weight.flatten(), model[4].bias]).norm().item()
    assert 0 < moved <= 10.0 * 1e-3 * floor * 1.0001  # not the raw rate, which would move by 10 * ||g||
    for _ in range(600):
        optimizer.zero_grad()
        squared_loss(model, images()).backward()
        optimizer.step()
    assert torch.cat([model[4].weight.flatten(), model[4].bias]).norm() > 10 * floor  # it does leave the floor


def test_norm_floor_leaves_ordinary_layers_alone():
    model, x = network().double(), [images().double()]
    twin = copy.deepcopy(model)
    one = train(model, clars.CLARS(model, lr=1.0, norm_floor=1e-3), x)
    two = train(twin, clars.CLARS(twin, lr=1.0, norm_floor=0.0), x)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_overrides_of_layers_that_hold_vectors():
    model = network()
    optimizer = clars.CLARS(model, lr=1.0, overrides={"@1d": {"weight_decay": 0.0, "adapt": False}})
    vectors = {
        name for name, module in model.named_modules() if isinstance(module, torch.nn.modules.batchnorm._NormBase)
    }
    assert vectors
    assert {group["layer"] for group in optimizer.param_groups if not group["adapt"]} == vectors


def test_overrides_by_pattern():
    model = network()
    optimizer = clars.CLARS(model, lr=1.0, overrides={"*": {"weight_decay": 0.1}, "1": {"adapt": False, "lr": 0.5}})
    groups = {group["layer"]: group for group in optimizer.param_groups}
    assert [groups[name]["weight_decay"] for name in ("0", "1", "4")] == [0.1, 0.1, 0.1]
    assert not groups["1"]["adapt"] and groups["1"]["lr"] == 0.5 and groups["0"]["lr"] == 1.0
    squared_loss(model, images()).backward()
    before = model[1].bias.detach().clone()
    optimizer.step()
    assert optimizer.layer_stats()["1"].ratio == 1.0
    torch.testing.assert_close(before - model[1].bias, 1.9 * 0.5 * (model[1].bias.grad + 0.1 * before))
    assert [layer.name for layer in optimizer.norms.layers] == ["0", "4"]


def test_an_excluded_layer_needs_no_rule():
    model = nn.Sequential(nn.PReLU(2), nn.Flatten(), nn.Linear(32, 2))
    optimizer = clars.CLARS(model, lr=0.1, overrides={"0.*": {"adapt": False}})
    squared_loss(model, torch.randn(3, 2, 4, 4)).backward()
    optimizer.step()
    assert optimizer.layer_stats()["0.weight"].ratio == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": 1.0, "momentum": 1.0}, "momentum=1.0"),
        ({"lr": 1.0, "weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"lr": 1.0, "trust_coefficient": "big"}, "trust_coefficient='big'"),
        ({"lr": 1.0, "nesterov": 1}, "nesterov=1"),
        ({"lr": 1.0, "eps": -1.0}, "eps=-1.0"),
        ({"lr": 1.0, "layers": "tensor"}, "layers='tensor'"),
        ({"lr": 1.0, "overrides": {"bn*": {}}}, "'bn\\*' matches no layer"),
        ({"lr": 1.0, "overrides": {"0": {"weight_decy": 0.0}}}, "Did you mean 'weight_decay'"),
    ],
)
def test_impossible_options(arguments, message):
    with pytest.raises(ValueError, match=message):
        clars.CLARS(network(), **arguments)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no trainable parameter"):
        clars.LARS(network().requires_grad_(False), lr=1.0)


def test_step_without_backward():
    model = network()
    optimizer = clars.CLARS(model, lr=1.0)
    with pytest.raises(ValueError, match=r"call loss.backward\(\)"):
        optimizer.step()
    model.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="no backward pass has left the gradients that are there"):
        optimizer.step()


def test_a_second_step_by_the_same_gradient():
    """The sums are still those of what is in `.grad`, as the gradient is for any other optimizer."""
    model, x = network(), images()
    optimizer = clars.CLARS(model, lr=1.0, weight_decay=0.0)
    squared_loss(model, x).backward()
    optimizer.step()
    first = optimizer.layer_stats()
    optimizer.step()
    second = optimizer.layer_stats()
    assert [row.example_norm_sum for row in first.values()] == [row.example_norm_sum for row in second.values()]


def test_parameters_replaced_after_the_optimizer_was_made():
    model = network()
    optimizer = clars.LARS(model, lr=1.0)
    model[4].weight = nn.Parameter(torch.zeros(3, 36))
    squared_loss(model, images()).backward()
    with pytest.raises(ValueError, match="'weight' of layer '4' was replaced"):
        optimizer.step()


@pytest.mark.parametrize("make", [clars.CLARS, clars.LARS])
@pytest.mark.parametrize("stepped", [False, True])
def test_a_layer_that_was_replaced_after_the_optimizer_was_made(make, stepped):
    """A new head never trained, and nobody was told."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    optimizer = make(model, lr=1.0)
    if stepped:
        train(model, optimizer, [torch.randn(2, 3)])
    model[1][1] = nn.Linear(4, 3)
    squared_loss(model, torch.randn(2, 3)).backward()
    with pytest.raises(ValueError, match=r"module of layer '1\.1' is no part of the model any more"):
        optimizer.step()


def test_a_layer_that_was_wrapped_after_the_optimizer_was_made():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = clars.CLARS(model, lr=1.0)
    for _ in range(2):
        model[0] = nn.Sequential(model[0])
        train(model, optimizer, [torch.randn(2, 3)])
    assert list(optimizer.layer_stats()) == ["0", "2"]


@pytest.mark.parametrize("make", [clars.CLARS, clars.LARS])
def test_weights_tied_after_the_optimizer_was_made(make):
    """The one tensor was stepped twice."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    optimizer = make(model, lr=1.0)
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match=r"'0.weight' and '2.weight' are one tensor|share one parameter"):
        train(model, optimizer, [torch.randn(2, 3)])


def test_weights_that_have_changed_places():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double(), torch.randn(4, 3).double()
    optimizer = clars.CLARS(model, lr=1.0)
    model[0].weight, model[2].weight = model[2].weight, model[0].weight
    twin = copy.deepcopy(model)
    ours, expected = train(model, optimizer, [x]), train(twin, clars.CLARS(twin, lr=1.0), [x])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_a_compiled_model_is_the_model_that_was_compiled():
    """Its name stood in the layers' names, and dynamo failed on it."""
    model = network()
    optimizer = clars.CLARS(torch.compile(model, backend="eager"), lr=1.0)
    assert [layer.name for layer in optimizer.layers] == ["0", "1", "4"]
    train(model, optimizer, [images()])


def test_a_state_that_lacks_an_option():
    model = network()
    state = clars.LARS(model, lr=1.0).state_dict()
    del state["param_groups"][1]["adapt"]
    with pytest.raises(ValueError, match="state of layer '1': lacks the option 'adapt'"):
        clars.LARS(model, lr=1.0).load_state_dict(state)


def test_parameters_used_behind_their_modules_back():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mix = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            x = self.embed(x)
            return self.mix(x, x, x)[0]

    model = Attention().double()
    optimizer = clars.CLARS(model, lr=1.0, overrides={"mix.in_proj*": {"adapt": False}})
    x = torch.randn(2, 3, 4, dtype=torch.double)
    expected = clars.oracle.example_norms(model, squared_loss, x)
    for called in (model, lambda x: model.mix(*[model.embed(x)] * 3)[0]):  # the latter by parts
        optimizer.zero_grad()
        squared_loss(called, x).backward()
        sums = optimizer.norms.sums()
        assert sums.keys() == {"embed", "mix.out_proj"}
        torch.testing.assert_close(sums, {name: expected[name] for name in sums}, rtol=1e-9, atol=0)


def test_a_layer_without_gradient_is_left_alone():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.seldom, self.use = nn.Linear(3, 3), nn.Linear(3, 3), True

        def forward(self, x):
            return self.seldom(self.always(x)) if self.use else self.always(x)

    model = Optional()
    optimizer = clars.CLARS(model, lr=1.0)
    train(model, optimizer, [torch.randn(2, 3)])
    model.use = False
    before = model.seldom.weight.detach().clone()
    train(model, optimizer, [torch.randn(2, 3)])
    assert torch.equal(model.seldom.weight, before)
    assert list(optimizer.layer_stats()) == ["always"]


def test_a_layer_without_gradient_whose_gradients_are_kept_as_zeros():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model.forward = lambda x: model[1](model[0](x))
    optimizer = clars.CLARS(model, lr=1.0, weight_decay=0.0, momentum=0.0)
    train(model, optimizer, [torch.randn(2, 3)])
    model.forward = lambda x: model[0](x)
    optimizer.zero_grad(set_to_none=False)
    squared_loss(model, torch.randn(2, 3)).backward()
    before = model[1].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[1].weight, before)


def test_a_penalty_in_the_loss_moves_no_layer_faster_than_lars():
    """Its gradient reaches the weights past the layers, where no example can be told; the statistics warn of it."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.randn(5, 3).double()
    twin = copy.deepcopy(model)
    for net, method in ((model, clars.CLARS), (twin, clars.LARS)):
        optimizer = method(net, lr=1.0)
        penalty = 50 * sum(p.square().sum() for p in net.parameters())
        (1e-3 * squared_loss(net, x) + penalty).backward()
        optimizer.step()
        if method is clars.CLARS:
            with pytest.warns(UserWarning, match="penalty"):
                optimizer.layer_stats()
    torch.testing.assert_close(list(model.parameters()), list(twin.parameters()), rtol=1e-12, atol=0)


def test_layers_of_several_precisions():
    """Ratios are then in the widest, rates in that of their tensor."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2).double()

        def forward(self, x):
            return self.second(self.first(x).double())

    model = Mixed()
    twin = copy.deepcopy(model).double()
    for net in (model, twin):
        optimizer = clars.CLARS(net, lr=1.0)
        squared_loss(net, torch.ones(2, 3, dtype=net.first.weight.dtype)).backward()
        optimizer.step()
    for ours, expected in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-6, atol=1e-7)


def test_a_change_of_precision():
    model = nn.Sequential(nn.Linear(3, 4).double(), nn.Linear(4, 2).double())
    optimizer = clars.CLARS(model, lr=1.0)
    train(model, optimizer, [torch.randn(4, 3).double()])
    model.float()
    optimizer.state.clear()
    train(model, optimizer, [torch.randn(4, 3)])
    model.double()
    optimizer.state.clear()
    train(model, optimizer, [torch.randn(4, 3).double()])
    assert optimizer.layer_stats()["0"].example_norm_sum > 0


def test_groups_cannot_be_added():
    optimizer = clars.LARS(network(), lr=1.0)
    with pytest.raises(ValueError, match="make the optimizer anew"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_an_excluded_layer_cannot_be_adapted_later():
    model = network()
    optimizer = clars.CLARS(model, lr=1.0, overrides={"1": {"adapt": False}})
    optimizer.param_groups[1]["adapt"] = True
    squared_loss(model, images()).backward()
    with pytest.raises(ValueError, match="'1' was made with adapt=False"):
        optimizer.step()


def test_optimizers_are_not_copied():
    with pytest.raises(ValueError, match="cannot be copied or pickled"):
        copy.deepcopy(clars.LARS(network(), lr=1.0))


def test_a_name_with_brackets_matches_itself():
    model = nn.ModuleDict({"x[0]": nn.Linear(2, 2)})
    optimizer = clars.LARS(model, lr=1.0, overrides={"x[0]": {"adapt": False}})
    assert not optimizer.param_groups[0]["adapt"]


def test_sparse_gradients_are_refused():
    model = nn.Embedding(4, 2, sparse=True)
    optimizer = clars.LARS(model, lr=1.0)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()


def test_state_dict_round_trip():
    model = network()
    batches = [images() for _ in range(6)]
    twin = copy.deepcopy(model)
    straight = train(model, clars.CLARS(model, lr=5.0), batches)
    first = clars.CLARS(twin, lr=5.0)
    train(twin, first, batches[:3])
    later = copy.deepcopy(twin)
    second = clars.CLARS(later, lr=1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    later(images()).sum().backward()  # the first forward is followed, and rounds otherwise
    later.load_state_dict(twin.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(train(later, second, batches[3:]), straight))


def test_a_closure_that_leaves_no_gradient_leaves_the_step_out():
    """Lightning calls step() with one where a training step returns None."""
    model, x = network(), images()
    optimizer = clars.CLARS(model, lr=5.0)
    train(model, optimizer, [x])
    optimizer.zero_grad()
    before = copy.deepcopy(model.state_dict())
    assert optimizer.step(lambda: None) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert optimizer.layer_stats() == {}
    with pytest.raises(ValueError, match="without gradients"):
        optimizer.step()


def test_a_state_is_loaded_twice():
    """Torch adds to the defaults at the first time, and accelerate loads one when it takes the optimizer over."""
    optimizer = clars.CLARS(network(), lr=5.0)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 5.0


def test_state_of_other_layers_is_refused():
    state = clars.LARS(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), lr=1.0).state_dict()
    with pytest.raises(ValueError, match="other layers"):
        clars.LARS(nn.Linear(2, 2), lr=1.0).load_state_dict(state)


@pytest.mark.parametrize("make", [lambda o: LambdaLR(o, lambda t: 0.5**t), lambda o: OneCycleLR(o, 1.0, 10)])
def test_schedulers(make):
    model = network()
    optimizer = clars.CLARS(model, lr=4.0)
    schedule = make(optimizer)
    train(model, optimizer, [images() for _ in range(3)], schedule)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1
    assert optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0] != 4.0


def test_closure():
    model, x = network(), images()
    twin = copy.deepcopy(model)
    expected = train(twin, clars.CLARS(twin, lr=1.0), [x])
    optimizer = clars.CLARS(model, lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = squared_loss(model, x)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = squared_loss(model, x)
    assert torch.equal(optimizer.step(closure), loss)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected))


def test_a_given_tracker():
    model = network()
    norms = clars.ExampleNorms(model)
    optimizer = clars.CLARS(model, lr=1.0, norms=norms)
    assert optimizer.norms is norms
    with pytest.raises(ValueError, match="does not track"):
        clars.CLARS(network(), lr=1.0, norms=clars.ExampleNorms(nn.Linear(1, 1)))


def test_statistics_by_definition():
    """Variance factor and noise scale from all per-example gradients of a model without batch statistics."""
    model, x = nn.Sequential(nn.Linear(3, 2)).double(), torch.randn(5, 3).double()
    rows = []
    for example in x:
        gradients = torch.autograd.grad(squared_loss(model, example.unsqueeze(0)), list(model.parameters()))
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    rows = torch.stack(rows)
    mean = rows.mean(0)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer = clars.CLARS(model, lr=1.0)
    for part in x.split([2, 3]):
        (squared_loss(model, part) * len(part) / 5).backward()
    optimizer.step()
    stats = optimizer.layer_stats()["0"]
    trace = (rows - mean).square().sum() / 4
    true_square = mean.square().sum() - trace / 5
    expected = (weights.norm(), mean.norm(), rows.norm(dim=1).mean(), rows.square().sum() / 5 / mean.square().sum())
    got = (stats.weight_norm, stats.gradient_norm, stats.example_norm_sum, stats.variance_factor)
    assert got == pytest.approx([value.item() for value in expected], rel=1e-12)
    assert stats.noise_scale == pytest.approx(
        (trace / true_square).item() if true_square > 0 else float("inf"), rel=1e-9
    )


def test_statistics_before_the_first_step():
    with pytest.raises(ValueError, match="before the first step"):
        clars.CLARS(network(), lr=1.0).layer_stats()


def test_parameters_in_place_of_the_model():
    with pytest.raises(ValueError, match="A model is needed here, not generator"):
        clars.CLARS(network().parameters(), lr=1.0)
