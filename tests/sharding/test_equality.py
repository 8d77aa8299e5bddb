"""Every strategy against one process, on the same global batch: weights, momentum, ratios and S_k after ten steps.

Starting processes takes longest, so each test starts them once for many trainings.
"""

from dataclasses import replace
from functools import cache

import pytest
from cluster import Case, launch, train
from compare import assert_equal, relative

PLAIN, ZERO = ("ddp", "fsdp2"), ("zero1", "zero2", "zero3")
METHODS = ("CLARS", "LARS", "LAMB")
SOME = [("CLARS", 1, 0.05), ("CLARS", 4, 0.0), ("LARS", 1, 0.0), ("LARS", 4, 0.05), ("LAMB", 4, 0.05)]
ALL = [(method, accumulation, clip) for method in METHODS for accumulation in (1, 4) for clip in (0.0, 0.05)]
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}
BOTH = (
    {"round_robin_gradients": True},
    {"reduce_scatter": False},
    {"overlap_comm": True},
    {"contiguous_gradients": False},
    {"reduce_bucket_size": 40},
    {"parameter_alignment": True},
    OFFLOADED,
)
ZERO_OPTIONS = {
    "zero1": BOTH,
    "zero2": (*BOTH, {"round_robin_gradients": True, "overlap_comm": True, "reduce_bucket_size": 40}),
    "zero3": (
        {"sub_group_size": 10},
        {"reduce_scatter": False},
        {"overlap_comm": True},
        {"contiguous_gradients": False},
        {"stage3_param_persistence_threshold": 0},
        OFFLOADED,
        OFFLOADED | {"offload_param": {"device": "cpu"}},
    ),
}
OPTIONS = (
    {"layers": "parameter"},
    {"nesterov": False, "overrides": {"norm": {"adapt": False, "lr": 0.01, "weight_decay": 0.0}}},
    {"momentum": 0.0},
)
OF_LAMB = (
    {"layers": "module", "betas": (0.5, 0.9)},
    {"overrides": {"norm.*": {"adapt": False, "weight_decay": 0.0, "lr": 0.001}}},
)
# as others have it: a largest ratio, which some layers reach, no decay in it, the rate outside of heavy-ball momentum
OTHERS = {"max_ratio": 0.01, "decay_in_ratio": False, "rate_in_buffer": False, "nesterov": False, "layers": "parameter"}
GROUPED = OTHERS | {"estimator": "group", "group": 3}  # whole ones in each micro-batch of either process
needs_deepspeed = pytest.mark.deepspeed
full = pytest.mark.full


def cases(strategies, settings=ALL):
    return [Case(strategy, *setting) for strategy in strategies for setting in settings]


@cache
def alone(case: Case) -> dict:
    return train(case)


def check(world, folder, cases):
    for case, results in zip(cases, launch(world, folder, train, cases)):
        try:
            assert_equal(results[0], alone(case.alone()))
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None


def test_replicas_and_fully_sharded(tmp_path):
    others = [Case(strategy, "CLARS", 4, options=options) for strategy in PLAIN for options in (OTHERS, GROUPED)]
    check(2, tmp_path, [*cases(PLAIN, SOME), *cases(("hsdp",), [*SOME[1:3], SOME[-1]]), *others])


WINDOWS = [
    Case("", "CLARS", accumulation, options=options, windows=True, steps=(0, 4))
    for accumulation, options in ((1, {}), (4, GROUPED))
]


def test_windows_expressions_and_several_uses(tmp_path):
    check(2, tmp_path, [replace(case, strategy=strategy) for strategy in PLAIN for case in WINDOWS])


@needs_deepspeed
def test_windows_expressions_and_several_uses_under_zero(tmp_path):
    check(2, tmp_path, [replace(case, strategy=strategy) for strategy in ZERO for case in WINDOWS])


@needs_deepspeed
def test_zero(tmp_path):
    merged = Case("zero2", "CLARS", 4, 0.05, {"round_robin_gradients": True}, merge=True)
    lamb = Case("zero2", "LAMB", 4, zero={"round_robin_gradients": True}, merge=True)
    others = [Case("zero2", "CLARS", 4, options=OTHERS), *(Case(each, "CLARS", 4, options=GROUPED) for each in ZERO)]
    check(2, tmp_path, [*cases(ZERO, SOME), merged, lamb, *others, Case("zero3", "LARS", 1, 0.05, born_cut=True)])


@full
@pytest.mark.parametrize("world", [3, 4])
def test_replicas_and_fully_sharded_on_more(world, tmp_path):
    check(world, tmp_path, cases(PLAIN) + cases(("hsdp",) if world == 4 else ()))


@full
@needs_deepspeed
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("strategy", ZERO)
def test_zero_with_all_its_options(world, strategy, tmp_path):
    with_options = [
        Case(strategy, method, accumulation, 0.05, zero, merge=merge)
        for zero in ({}, *ZERO_OPTIONS[strategy])
        for method, accumulation in (("CLARS", 4), ("LARS", 1), ("LAMB", 4))
        for merge in (False, True)
    ]
    check(world, tmp_path, cases([strategy]) + with_options)


@full
@needs_deepspeed
@pytest.mark.parametrize("world", [2, 3])
def test_options_of_the_optimizers(world, tmp_path):
    check(
        world,
        tmp_path,
        [
            Case(strategy, method, 2, options=options, merge=strategy == "zero1")
            for strategy in PLAIN + ZERO
            for methods, choices in ((("CLARS", "LARS"), (*OPTIONS, OTHERS)), (("LAMB",), OF_LAMB))
            for method in methods
            for options in choices
        ],
    )


@needs_deepspeed
def test_batch_normalisation_and_a_subset_of_the_examples(tmp_path):
    """Draws depend on the process, so they are compared between strategies, not with one process."""
    batch = [Case(strategy, norm=norm) for strategy in PLAIN + ZERO for norm in ("batch", "running")]
    subset = [Case(strategy, options={"estimator": "subset", "fraction": 0.25}) for strategy in PLAIN + ZERO]
    results = [got[0] for got in launch(2, tmp_path, train, batch + subset)]
    for case, got in zip(batch, results):
        assert_equal(got, alone(case.alone()))
    drawn = results[len(batch) :]
    for got in drawn[1:]:
        assert_equal(got, drawn[0])
    assert relative(drawn[0]["weights"]["conv.weight"], alone(Case("single"))["weights"]["conv.weight"]) > 1e-3


def bytes_of(case, parameters=10):
    """What docs/sharding.md says of a step, for each collective. LAMB's layers are the parameters."""
    layers = parameters if case.method == "LAMB" else 6
    of_weights = 0 if case.strategy == "ddp" else 8 * layers
    of_examples = 16 * layers if case.method == "CLARS" else 0
    first = of_weights + of_examples + (4 * parameters if case.strategy.startswith("zero") else 0)
    second = 4 * layers if case.method == "LAMB" and case.strategy != "ddp" else 0
    return [size for size in (first, second) if size]


@pytest.mark.parametrize("strategies", [PLAIN, pytest.param(ZERO, marks=needs_deepspeed)], ids=["torch", "zero"])
def test_one_small_collective_per_step(tmp_path, strategies):
    """Two for LAMB. On top of the strategy's own, whatever the number of groups; checks are more, ever more seldom."""
    few = [
        Case(strategy, method, 4, merge=merge)
        for strategy in strategies
        for method, merge in (("CLARS", False), ("LARS", True), ("LAMB", True))
    ]
    for case, results in zip(few, launch(2, tmp_path, train, few)):
        own = bytes_of(case)
        checks = [24 * 10, *([8 * (10 if case.method == "LAMB" else 6)] if case.strategy == "ddp" else [])]
        expected = [checks + own if step in (1, 2, 4, 8) else own for step in range(1, 11)]
        for result in results:
            assert result["collectives"] == expected, case
