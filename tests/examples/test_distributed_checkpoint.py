"""States saved and loaded by torch.distributed.checkpoint, by one process and by two, go on to the same numbers."""

import copy

import by_hand
import pytest
import torch
from cluster import launch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import clars
from clars.sharding import gather_weights

checkpoint = by_hand.example("distributed_checkpoint")


def new(seed=0):
    torch.manual_seed(seed)
    model = checkpoint.network()
    return model, clars.CLARS(model, lr=8.0)


def batches():
    return by_hand.batches(shape=(64,))


def straight():
    """Return what all batches, one after another, make of the model."""
    model, _ = new()
    by_hand.train(model, batches())
    return model


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_one_process(tmp_path):
    """The second optimizer has taken no step when it is asked for its state; it has other weights and another rate."""
    model, optimizer = new()
    checkpoint.train(model, optimizer, batches()[:3])
    checkpoint.save(model, optimizer, tmp_path)
    resumed, second = new(seed=1)
    second.param_groups[0]["lr"] = 1.0
    checkpoint.load(resumed, second, tmp_path)
    by_hand.assert_same(resumed, model)
    checkpoint.train(resumed, second, batches()[3:])
    by_hand.assert_same(resumed, straight())


def test_the_state_before_the_first_step():
    """Asking for it moves nothing, and what comes after is what would have come."""
    model, optimizer = new()
    before = copy.deepcopy(model)
    state = get_optimizer_state_dict(model, optimizer)
    by_hand.assert_same(model, before)
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    set_optimizer_state_dict(model, optimizer, state)
    checkpoint.train(model, optimizer, batches())
    by_hand.assert_same(model, straight())


@pytest.mark.parametrize("change", [lambda own: own.merge_groups(), lambda own: None], ids=["merged", "by layer"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_other_forms_of_the_state(momentum, change):
    models, optimizers = [], []
    for seed in (0, 1):
        model, _ = new(seed)
        optimizer = clars.CLARS(model, lr=8.0, momentum=momentum)
        change(optimizer)
        models.append(model)
        optimizers.append(optimizer)
    checkpoint.train(models[0], optimizers[0], batches()[:3])
    models[1].load_state_dict(models[0].state_dict())
    state = copy.deepcopy(get_optimizer_state_dict(models[0], optimizers[0]))  # which holds the very tensors
    set_optimizer_state_dict(models[1], optimizers[1], state)
    for model, optimizer in zip(models, optimizers):
        checkpoint.train(model, optimizer, batches()[3:])
    by_hand.assert_same(*models)


def of_two(case, rank, world):
    """Save after three batches, or load and go on; each process has its half of each batch."""
    what, folder = case
    own = [(images[rank::world], labels[rank::world]) for images, labels in batches()]
    model, optimizer = new(seed=0 if what == "save" else 1)
    if what == "load":
        checkpoint.load(model, optimizer, folder)
    checkpoint.train(model, optimizer, own[:3] if what == "save" else own[3:])
    if what == "save":
        checkpoint.save(model, optimizer, folder)
    return gather_weights(optimizer, model)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_processes(tmp_path):
    """Saved by two that have cut the layers and loaded by these and by one; and the other way round.

    Not to the bit, as each of two adds up its half of the batch.
    """
    model, optimizer = new()
    checkpoint.train(model, optimizer, batches()[:3])
    checkpoint.save(model, optimizer, tmp_path / "one")
    cases = [("save", tmp_path / "two"), ("load", tmp_path / "two"), ("load", tmp_path / "one")]
    _, by_two, from_one = launch(2, tmp_path, of_two, cases)
    resumed, second = new(seed=1)
    checkpoint.load(resumed, second, tmp_path / "two")
    checkpoint.train(resumed, second, batches()[3:])
    expected = straight().state_dict()
    for weights in (resumed.state_dict(), by_two[0], from_one[0]):
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            assert (weights[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_script(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_hand.run_as_script("distributed_checkpoint")
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first == second
    assert float(first[3]) > float(first[8])
