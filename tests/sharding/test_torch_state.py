"""Torch's own functions for the state of a sharded optimizer, with parameters of fewer rows than processes."""

import pytest
import torch
from cluster import Case, batches, fsdp2, launch, make, network, train
from compare import assert_equal
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from clars.lab.training import momentum
from clars.sharding.state import gather_weights


def prepared(case, seed):
    model = network(case)
    optimizer = make(case, model)
    steps, *_ = fsdp2(case, model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 + seed)
    return model, optimizer, steps


def go(steps, numbers, rank, world):
    for number in numbers:
        batch = batches()[number]
        steps([batch.view(world, -1, *batch.shape[1:])[rank]], number % 3 != 1)


def halfway(case, rank, world):
    """Take five steps, hand the state to a model of other weights that has taken none, and go on there."""
    case, folder, whole = case
    options = StateDictOptions(full_state_dict=whole)
    model, optimizer, steps = prepared(case, 0)
    get_state_dict(model, optimizer, options=options)  # before the first step
    go(steps, range(5), rank, world)
    weights, state = get_state_dict(model, optimizer, options=options)
    later, second, steps = prepared(case, 1)
    if not whole:
        checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
        weights, state = get_state_dict(later, second)
        checkpoint.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(later, second, model_state_dict=weights, optim_state_dict=state, options=options)
    go(steps, range(5, 10), rank, world)
    return {"weights": gather_weights(second, later), "momentum": momentum.gather(second, later, second), "stats": []}


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.full)])
def test_a_state_goes_over_whole_and_in_parts(world, tmp_path):
    """Processes without an element of a parameter had no state of it: gloo aborted, and a checkpoint hung."""
    methods = ("CLARS", "LARS", "LAMB")
    cases = [(Case("fsdp2", method), tmp_path / method, whole) for method in methods for whole in (True, False)]
    for (case, _, whole), results in zip(cases, launch(world, tmp_path, halfway, cases, 120.0)):
        expected = train(case.alone()) | {"stats": []}
        try:
            assert_equal(results[0], expected)
        except AssertionError as error:
            raise AssertionError(f"{case}, whole={whole}: {error}") from None
