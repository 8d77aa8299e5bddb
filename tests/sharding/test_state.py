"""Whole weights and momentum go from any strategy and number of processes to any other."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from cluster import Case, launch, train
from compare import assert_equal
from torch import nn

import clars
from clars.sharding import gather_momentum, put_momentum

METHODS = ("CLARS", "LAMB", "SGD")
STRATEGIES = ["ddp", "fsdp2", *(["zero1", "zero2", "zero3"] if find_spec("deepspeed") else [])]


def rotated(strategies):
    return zip(strategies, strategies[1:] + strategies[:1])


def halves(folder, first_world, second_world):
    """Train five steps on some processes, and from there five on others, by another strategy each; return both."""
    first = [Case(strategy, method, accumulation=2, steps=(0, 5)) for method in METHODS for strategy in STRATEGIES]
    for name in ("first", "second"):
        (folder / name).mkdir()
    for case, results in zip(first, launch(first_world, folder / "first", train, first)):
        torch.save(results[0], folder / f"{case.method}-{case.strategy}.pt")
        assert all(result["weights"] == result["momentum"] == {} for result in results[1:])
    second = [
        Case(strategy, method, accumulation=2, steps=(5, 10), state=f"{folder}/{method}-{before}.pt", early=early)
        for method, early in (("CLARS", False), ("CLARS", True), ("LAMB", True), ("SGD", False))
        for strategy, before in rotated(STRATEGIES)
    ]
    return second, launch(second_world, folder / "second", train, second)


@pytest.mark.parametrize("worlds", [(2, 3), pytest.param((4, 2), marks=pytest.mark.full)])
def test_a_training_goes_on_under_another_strategy(worlds, tmp_path):
    whole = {method: train(Case("single", method, accumulation=2)) for method in METHODS}
    for result in whole.values():
        result["stats"] = result["stats"][5:]
    second, got = halves(tmp_path, *worlds)
    for case, results in zip(second, got):
        assert_equal(results[0], whole[case.method])
    assert_equal(train(replace(second[0], strategy="single")), whole["CLARS"])


def test_a_state_of_another_model_is_refused():
    model = nn.Linear(2, 3)
    optimizer = clars.LARS(model, lr=1.0)
    with pytest.raises(ValueError, match=r"momentum of 'weight' has the shape \(2,\), the parameter \(3, 2\)"):
        put_momentum(optimizer, model, {"weight": torch.zeros(2)})


def test_one_key_is_not_enough_where_there_are_two():
    model = nn.Linear(2, 3)
    optimizer = clars.LAMB(model, lr=1.0)
    with pytest.raises(ValueError, match=r"LAMB keeps exp_avg and exp_avg_sq of each parameter.*key="):
        gather_momentum(optimizer, model)
    with pytest.raises(ValueError, match="LAMB keeps exp_avg and exp_avg_sq"):
        put_momentum(optimizer, model, {})
