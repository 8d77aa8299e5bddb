"""`clars.graphed`, by a stand-in for the graph that repeats operators as a GPU does (see tape.py)."""

import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch
from tape import Tape
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import clars
from clars.graphs.graphed import Graphed
from clars.native import where

OPTIMIZERS = {
    "clars": lambda model: clars.CLARS(model, lr=2.0, overrides={"1": {"weight_decay": 0.0, "lr": 0.5}}),
    "group": lambda model: clars.CLARS(model, lr=2.0, estimator="group", group=2),
    "author2019": lambda model: clars.CLARS.author2019(model, lr=0.2, group=3),
    "lars": lambda model: clars.LARS(model, lr=2.0),
    "lamb": lambda model: clars.LAMB(model, lr=1e-2),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.05, 0.9, nesterov=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), 0.01),
}


class Training:
    """A small network whose step can be graphed; `step` counts how often Python runs it."""

    def __init__(self, optimizer="clars", graphs=True, dropout=0.0, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(48, 4)
        ).double()
        self.optimizer = (OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer)(self.model)
        self.ran, self.tapes = 0, []
        self.take = Graphed(self.step, capture=self.tape, **options) if graphs else self.step

    def tape(self, device):
        self.tapes.append(Tape(device))
        return self.tapes[-1]

    def step(self, x, y):
        self.ran += 1
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def values(self):
        return [value.clone() for value in self.model.state_dict().values()]


def batches(count, size=6):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield (
            torch.randn(size, 2, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(4, (size,), generator=generator),
        )


def close(one, other, bound=1e-12):
    for a, b in zip(one.values(), other.values()):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam"])
def test_steps_are_those_of_the_loop_under_a_schedule(name):
    graphed, plain = Training(name), Training(name, graphs=False)
    for training in (graphed, plain):
        schedule = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda step: 1 / (1 + step))
        training.losses = []
        for x, y in batches(9):
            training.losses.append(float(training.take(x, y).detach()))
            schedule.step()
    # float32 holds the rates of others than ours on the device
    close(graphed, plain, 1e-12 if name != "sgd" else 1e-6)
    assert graphed.losses == pytest.approx(plain.losses, rel=1e-12 if name != "sgd" else 1e-6)
    assert graphed.ran == 4 and plain.ran == 9  # three to warm up, one that is captured
    assert graphed.tapes[0].recorded == 1 and graphed.tapes[0].replayed == 6
    assert int(graphed.model[1].num_batches_tracked) == 9


def test_a_frozen_rate_would_show():
    """The stand-in repeats a rate that Python has worked out, as a graph does."""
    plain, frozen = Training(graphs=False), Training(graphs=False)
    every = list(batches(4))
    for x, y in every[:2]:
        plain.step(x, y), frozen.step(x, y)
    tape = Tape(None)
    x, y = every[2]
    tape.record(lambda: frozen.step(x, y))
    tape.replay()
    plain.step(x, y)
    close(frozen, plain)  # the captured step itself was not taken
    for training in (plain, frozen):
        for group in training.optimizer.param_groups:
            group["lr"] *= 0.1
    tape.replay()
    plain.step(x, y)
    with pytest.raises(AssertionError):
        close(frozen, plain, 1e-6)


def test_statistics_are_those_of_the_replayed_step():
    graphed, plain = Training(), Training(graphs=False)
    noise = [clars.NoiseScale(training.model, training.optimizer.norms) for training in (graphed, plain)]
    for x, y in batches(8):
        for training, scale in zip((graphed, plain), noise):
            training.take(x, y)
            scale.update()
        told = [training.optimizer.layer_stats() for training in (graphed, plain)]
        for layer, row in told[1].items():
            assert told[0][layer] == pytest.approx(row, rel=1e-9)
        sums = [training.optimizer.norms.sums() for training in (graphed, plain)]
        assert all(float(value) > 0 for value in sums[0].values())
        torch.testing.assert_close(*sums, rtol=1e-10, atol=0)
        torch.testing.assert_close(*[training.optimizer.norms.squares() for training in (graphed, plain)])
    assert noise[0].batch_size() == pytest.approx(noise[1].batch_size(), rel=1e-9)


def test_what_the_loop_does_between_steps_is_put_right():
    """Gradients and sums that somebody cleared, or scaled, are there again after a replay."""
    graphed, plain = Training(), Training(graphs=False)
    for number, (x, y) in enumerate(batches(9)):
        graphed.take(x, y), plain.take(x, y)
        grads = [[p.grad for p in training.model.parameters()] for training in (graphed, plain)]
        torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(graphed.optimizer.norms.sums(), plain.optimizer.norms.sums(), rtol=1e-10, atol=0)
        if number % 3 == 0:
            graphed.optimizer.zero_grad()
        elif number % 3 == 1:
            for parameter in graphed.model.parameters():
                parameter.grad.zero_()
            assert not any(map(float, graphed.optimizer.norms.sums().values()))
    close(graphed, plain)


def test_another_shape_is_taken_as_it_is():
    graphed, plain = Training(), Training(graphs=False)
    sizes = [6, 6, 3, 6, 6, 3, 6, 6]
    for size in sizes:
        x, y = next(batches(1, size))
        assert float(graphed.take(x, y)) == pytest.approx(float(plain.take(x, y).detach()), rel=1e-12)
        told = [training.optimizer.layer_stats() for training in (graphed, plain)]
        for layer, row in told[1].items():
            assert told[0][layer] == pytest.approx(row, rel=1e-9)
    close(graphed, plain)
    assert graphed.tapes[0].replayed == 3 and graphed.ran == 3 + 2 + 1


def test_other_options_are_captured_anew():
    graphed, plain = Training(), Training(graphs=False)
    for number, (x, y) in enumerate(batches(9)):
        if number == 5:
            for training in (graphed, plain):
                for group in training.optimizer.param_groups:
                    group |= {"momentum": 0.5, "weight_decay": 0.01, "trust_coefficient": 0.002}
        graphed.take(x, y), plain.take(x, y)
    close(graphed, plain)
    assert graphed.tapes[0].recorded == 2 and graphed.tapes[0].replayed == 2 + 3


@pytest.mark.parametrize("name", ["clars", "lamb", "sgd"])
def test_a_loaded_state_is_used(name):
    graphed, plain = Training(name), Training(name, graphs=False)
    saved = {}
    for number, (x, y) in enumerate(batches(10)):
        if number == 6:
            for training in (graphed, plain):
                training.optimizer.load_state_dict(deepcopy(saved))
        graphed.take(x, y), plain.take(x, y)
        if number == 3:
            saved = deepcopy(plain.optimizer.state_dict())
    close(graphed, plain, 1e-12 if name != "sgd" else 1e-6)


def test_gradients_cleared_at_the_end_of_the_step():
    graphed, plain = Training(), Training(graphs=False)

    def ending(training):
        def step(x, y):
            loss = F.cross_entropy(training.model(x), y)
            loss.backward()
            training.optimizer.step()
            training.optimizer.zero_grad()
            return {"loss": [loss]}

        return step

    take = Graphed(ending(graphed), capture=Tape)
    for x, y in batches(7):
        got, wanted = take(x, y=y), ending(plain)(x, y)
        assert float(got["loss"][0]) == pytest.approx(float(wanted["loss"][0].detach()), rel=1e-12)
        assert graphed.model[0].weight.grad is None
        assert graphed.optimizer.layer_stats().keys() == plain.optimizer.layer_stats().keys() != set()
    close(graphed, plain)


def test_dropout_is_drawn_anew():
    training = Training("sgd", dropout=0.5)
    (x, y), rates = next(batches(1)), training.optimizer.param_groups
    rates[0]["lr"] = 0.0
    losses = {float(training.take(x, y)) for _ in range(8)}
    assert len(losses) == 8


def test_outputs_are_detached():
    training = Training()
    for x, y in batches(5):
        assert not training.take(x, y).requires_grad


def take_all(training, count=5):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for x, y in batches(count):
            training.take(x, y)


@pytest.mark.parametrize(
    "training, words",
    [
        (lambda: Training(lambda model: clars.CLARS(model, 1.0, estimator="subset")), "estimator='subset'"),
        (lambda: Training("adam"), "capturable=True"),
    ],
)
def test_optimizers_that_cannot_be_repeated(training, words):
    with pytest.raises(clars.UserError, match=words):
        take_all(training())


def test_subset_is_refused_in_any_capture():
    training = Training(lambda model: clars.CLARS(model, 1.0, estimator="subset"), graphs=False)
    x, y = next(batches(1))
    with where.capturing(), pytest.raises(clars.UserError, match="one draw"):
        training.step(x, y)


class Reads(Training):
    def step(self, x, y):
        loss = super().step(x, y)
        assert loss.item() > 0
        return loss


class Schedules(Training):
    def step(self, x, y):
        loss = super().step(x, y)
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9
        return loss


class Scales(Training):
    def step(self, x, y):
        scaler = torch.amp.GradScaler("cpu")
        self.optimizer.zero_grad()
        scaler.scale(F.cross_entropy(self.model(x), y)).backward()
        scaler.step(self.optimizer)
        scaler.update()


class Stands(Training):
    def step(self, x, y):
        return self.model(x).sum()


class Follows(Training):
    def step(self, x, y):
        loss = super().step(x, y)
        self.noise = getattr(self, "noise", None) or clars.NoiseScale(self.model, self.optimizer.norms)
        self.noise.update()
        return loss


@pytest.mark.parametrize(
    "kind, words",
    [
        (Follows, "Call it after the step"),
        (Reads, "item"),
        (Schedules, "schedule's step"),
        (Scales, "GradScaler.*bfloat16"),
        (Stands, "no optimizer step"),
    ],
)
def test_steps_that_cannot_be_repeated(kind, words):
    with pytest.raises(clars.UserError, match=words):
        take_all(kind())


def test_after_a_refusal_the_loop_goes_on_without():
    training = Reads()
    with pytest.raises(clars.UserError):
        take_all(training)
    x, y = next(batches(1))
    training.step(x, y)
    assert training.optimizer.live is None


def test_inputs():
    take = clars.graphed(Training(graphs=False).step)
    x, y = next(batches(1))
    with pytest.raises(clars.UserError, match="on one GPU, and these are on cpu"):
        take(x, y)
    with pytest.raises(clars.UserError, match="no tensor"):
        take(3)
    with pytest.raises(clars.UserError, match="needs a gradient"):
        Training().take(x.requires_grad_(), y)
    for warmup in (0, True, 2.5):
        with pytest.raises(clars.UserError, match="warmup"):
            clars.graphed(print, warmup)


def test_other_values_than_tensors():
    """A call with another one is taken as it is, and warned of once."""
    training = Training()
    take = Graphed(lambda x, y, factor: training.step(x * factor, y), capture=Tape)
    ran = []
    for factor in (1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0):
        x, y = next(batches(1))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            take(x, y, factor)
        ran.append((training.ran, [str(each.message) for each in told]))
    assert [count for count, _ in ran] == [1, 2, 3, 4, 5, 5, 6]
    assert [len(texts) for _, texts in ran] == [0, 0, 0, 0, 1, 0, 0]
    assert "first called with [1.0] beside its tensors, and now with [2.0]" in ran[4][1][0]


@pytest.mark.parametrize("warmup", [1, 4])
def test_warmup(warmup):
    training = Training(warmup=warmup)
    take_all(training, 8)
    assert training.ran == warmup + 1 and training.tapes[0].replayed == 8 - warmup


def swapped(training):
    weight = training.model[0].weight
    weight.data = weight.data.clone() * 1.5


CHANGES = {
    "data": swapped,
    "frozen": lambda training: training.model[5].bias.requires_grad_(False),
    "evaluation": lambda training: training.model[1].eval(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_graph_would_not_see_is_captured_anew(change):
    graphed, plain = Training(), Training(graphs=False)
    for number, batch in enumerate(batches(9)):
        if number == 6:
            for each in (graphed, plain):
                CHANGES[change](each)
        for each in (graphed, plain):
            each.take(*batch)
    assert graphed.ran == 3 + 1 + 1 + 1  # warm-up, capture, as it is, capture
    for one, other in zip(graphed.values(), plain.values()):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_an_input_that_needs_a_gradient_later_is_refused():
    training = Training()
    for number, (x, y) in enumerate(batches(6)):
        if number == 5:
            with pytest.raises(ValueError, match="needs a gradient"):
                training.take(x.requires_grad_(), y)
        else:
            training.take(x, y)


def test_a_view_lies_in_memory_as_the_captured_input_from_the_first_step_on():
    seen = []

    class Watching(Training):
        def step(self, x, y):
            seen.append((x.stride(), x.data_ptr()))
            return super().step(x, y)

    training = Watching()
    for x, y in batches(5):
        training.take(torch.stack([x, x], -1)[..., 0], y)
    assert len(seen) == 4 and len(set(seen)) == 1


class Counting(torch.optim.Optimizer):
    """Counts its steps in Python."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                parameter.sub_(group["lr"] / state["step"] * parameter.grad)


@pytest.mark.parametrize("optimizer", [Counting, torch.optim.Adagrad], ids=lambda kind: kind.__name__)
def test_an_optimizer_that_may_count_on_the_host_is_refused(optimizer):
    training = Training(lambda model: optimizer(model.parameters()))
    with pytest.raises(ValueError, match=f"{optimizer.__name__} was not made with capturable=True"):
        for batch in batches(5):
            training.take(*batch)


@pytest.mark.parametrize(
    "schedule", [lambda o: StepLR(o, 100), lambda o: ReduceLROnPlateau(o)], ids=["steps", "plateau"]
)
def test_a_schedule_in_the_step_is_refused_before_it_changes_anything(schedule):
    class Scheduled(Training):
        def step(self, x, y):
            loss = super().step(x, y)
            self.schedule.step(*([0.5] if isinstance(self.schedule, ReduceLROnPlateau) else []))
            return loss

    training = Scheduled()
    training.schedule = schedule(training.optimizer)
    with pytest.raises(ValueError, match="after the graphed step"):
        training.take(*next(batches(1)))
    training.schedule.step(*([0.5] if isinstance(training.schedule, ReduceLROnPlateau) else []))  # as before


def test_a_schedule_of_the_momentum_is_followed_with_a_warning():
    graphed, plain = Training(), Training(graphs=False)
    schedules = [OneCycleLR(each.optimizer, max_lr=2.0, total_steps=20) for each in (graphed, plain)]
    with pytest.warns(UserWarning, match="captured 3 times.*cycle_momentum=False"):
        for batch in batches(12):
            for each, schedule in zip((graphed, plain), schedules):
                each.take(*batch)
                schedule.step()
    for one, other in zip(graphed.values(), plain.values()):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_an_array_beside_tensors_is_refused():
    training = Training()
    graphed = Graphed(lambda x, y, mask: training.step(x, y), capture=training.tape)
    with pytest.raises(ValueError, match="cannot be compared, such as a numpy array"):
        for x, y in batches(3):
            graphed(x, y, np.ones(3))
