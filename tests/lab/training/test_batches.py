import pytest
from hypothesis import given
from hypothesis import strategies as st

from clars.errors import UserError
from clars.lab.launching.division import Division, divide
from clars.lab.training.batches import GlobalBatches, epoch_seed


def orders(examples, batch, world, limit, seed=0, epoch=0):
    """The global batches that the processes form together, each as a set."""
    division = divide(batch, world, limit)
    per_rank = []
    for rank in range(world):
        batches = GlobalBatches(examples, division, rank, seed)
        batches.epoch = epoch
        per_rank.append(list(batches))
        assert all(len(part) == division.micro_batch for part in per_rank[-1])
        assert len(per_rank[-1]) == len(batches)
    formed = []
    for start in range(0, len(per_rank[0]), division.accumulation):
        parts = [part for own in per_rank for part in own[start : start + division.accumulation]]
        formed.append(sorted(index for part in parts for index in part))
    return formed


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 30))
def test_any_machine_forms_the_same_global_batches(examples, shares, world, limit):
    batch = shares * world
    if batch > examples:
        examples += batch
    formed = orders(examples, batch, world, limit)
    assert formed == orders(examples, batch, 1, None)
    assert len(formed) == examples // batch
    every = [index for part in formed for index in part]
    assert len(set(every)) == len(every) == examples // batch * batch


def test_epochs_and_seeds_differ():
    assert orders(64, 8, 1, None) != orders(64, 8, 1, None, epoch=1) != orders(64, 8, 1, None, seed=1)
    assert epoch_seed(0, 1) != epoch_seed(1, 0)


@pytest.mark.parametrize(
    "batch, world, limit, micro", [(512, 1, None, 512), (512, 2, 100, 64), (96, 1, 50, 48), (7, 1, 3, 1), (8, 8, 4, 1)]
)
def test_division(batch, world, limit, micro):
    assert divide(batch, world, limit) == Division(batch, micro, batch // world // micro, world)


@pytest.mark.parametrize(
    "batch, world, limit, group, micro",
    [(64, 1, None, 8, 64), (64, 2, 20, 8, 16), (96, 1, 50, 8, 48), (20, 1, None, 8, 20), (48, 2, 23, 3, 12)],
)
def test_no_micro_batch_cuts_a_group(batch, world, limit, group, micro):
    assert divide(batch, world, limit, group).micro_batch == micro


@pytest.mark.parametrize(
    "batch, world, limit, group", [(64, 2, 7, 8), (20, 2, None, 8), (20, 1, 10, 8), (8, 2, None, 16)]
)
def test_groups_that_no_micro_batch_holds(batch, world, limit, group):
    with pytest.raises(UserError, match=rf"optimizer.group={group}.*multiple of {world * group}"):
        divide(batch, world, limit, group)


def test_unequal_shares():
    with pytest.raises(UserError, match="batch_size=10 cannot be shared by 4 processes"):
        divide(10, 4, None)


def test_impossible_limit():
    with pytest.raises(UserError, match="--micro-batch 0"):
        divide(10, 1, 0)


def test_batch_larger_than_the_training_set():
    with pytest.raises(UserError, match="batch_size=11 is larger than the training set of 10"):
        GlobalBatches(10, divide(11, 1, None), 0, 0)
