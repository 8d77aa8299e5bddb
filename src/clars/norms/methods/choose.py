"""Which exact method forms the per-example norms of a weight, and in pieces of what size.

A weight gradient is a sum over examples of products of an output gradient (P outputs at T positions) and an input
(D inputs at T positions). The methods are exact alike and differ in what they cost for which shape:

- matrix: each example's product by a multiplication of matrices, its norm taken, then added to the gradient.
- each: each example's product by a call of the convolution's own backward pass, examples in parallel (see `cpu`).
- direct: the same by kernels of our own, without calls: small convolutions, and depthwise ones of any size.
- grouped: the products of several examples by one convolution call with as many times the groups.
- gram: the ordinary weight gradient, and the norms from inner products between positions (see `gram`).
- fused: one kernel forms, squares and adds each product without writing it to memory (accelerators only).

The first four do the weight gradient's own arithmetic and nothing twice.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from clars.native import kernels as cpu
from clars.norms.estimator import Estimator
from clars.norms.methods.sizes import Problem, at_once, compiled, transient
from clars.norms.methods.products import processors
from clars.norms.rules.rule import Contribution, Measure, Rule


class WeightRule(Rule, Protocol):
    """A layer whose weight gradient is a sum of the examples' products."""

    def problem(self, gy: Tensor, x: Tensor, weight: Tensor) -> Problem:
        """Return the sizes by which a method is chosen."""

    def foreseen(self, x: Tensor, weight: Tensor) -> Problem:
        """Return the same for a call that has not been made yet."""

    def methods(self, problem: Problem) -> dict[str, Callable]:
        """Return the exact methods that apply, by name."""


def weight_contribution(
    rule: WeightRule, gy: Tensor, x: Tensor, weight: Tensor, whole: Callable, measure: Measure
) -> Contribution:
    """Return the weight's gradient and the measured examples' squared norms, by the cheapest exact method.

    Where a part of the batch is measured, its norms are formed beside the ordinary gradient, `whole()`. Only where
    the compiled kernels form the gradient from all the examples' products anyway are theirs among them.
    """
    problem = rule.problem(gy, x, weight)
    part = not measure.whole and not (problem.kernels and estimated(problem, tuple(rule.methods(problem))) != "gram")
    if part:
        gy, x = gy[measure.rows], x[measure.rows]
        problem = rule.problem(gy, x, weight)
    methods = rule.methods(problem)
    method = methods[choose(problem, methods, (gy, x, weight), whole, measure)]
    gradient, squares = method(gy, x, weight, problem, measure.memory)
    gradient = whole() if gradient is None or part else gradient
    return Contribution(gradient.to(weight.dtype), squares if part else measure.of(squares))


# Compiled layers made so far: to plan one at every call would take longer than a small product.
_PLANNED: dict[tuple, cpu.Layer | None] = {}
MOST_PLANNED = 10_000


def planned(
    rule: WeightRule, kind: str, hyper_parameters: tuple, x: Tensor, weight: Tensor, estimator: Estimator
) -> cpu.Layer | None:
    """Return a compiled layer of a kind for calls like this; None where other means are needed, or somebody watches."""
    measure = estimator.whole
    if measure.report is not None or times(x.device.type, measure) or not cpu.applies(x, weight):
        return None
    blocks = estimator.cut(len(x))
    key = (rule, x.shape, x.stride(), weight.shape, processors(), measure.memory, blocks)
    if key not in _PLANNED:
        if len(_PLANNED) >= MOST_PLANNED:
            _PLANNED.clear()
        with torch.no_grad():  # else activation checkpointing would count what this saves among what is saved
            problem = replace(rule.foreseen(x, weight), blocks=blocks)
        method = choose(problem, rule.methods(problem), (), None, measure)
        most = at_once(problem, method, measure.memory)
        fits = compiled(problem, method)
        _PLANNED[key] = cpu.Layer(kind, x, weight, *hyper_parameters, method, most) if fits else None
    return _PLANNED[key]


def times(device: str, measure: Measure) -> bool:
    """Tell whether the methods are timed."""
    return device != "cpu" if measure.timed is None else measure.timed


def choose(problem: Problem, methods: dict[str, Callable], tensors: tuple, whole: Callable, measure: Measure) -> str:
    """Return the name of the cheapest of `methods` for `problem`: timed on `tensors` once per shape, or estimated.

    Each is called as method(*tensors, problem, memory) and returns a `Contribution`, without a gradient where the
    weight gradient is to be formed by `whole()`.
    """
    allowed = within(problem, tuple(methods), measure.memory)
    name = estimated(problem, allowed) if len(allowed) > 1 else allowed[0]
    if len(allowed) > 1 and times(problem.device, measure):
        seconds = timed(problem, {key: methods[key] for key in allowed}, tensors, whole, measure.memory)
        name = min(seconds, key=seconds.__getitem__) if seconds else name
    if measure.report is not None:
        measure.report(problem, methods, tensors, whole, name)
    return name


def within(problem: Problem, names: tuple[str, ...], memory: int | None) -> tuple[str, ...]:
    """Return the methods that need at most `memory` bytes for an example; where none does, the one that needs least."""
    fit = tuple(name for name in names if memory is None or transient(problem, name) <= memory)
    return fit or (min(names, key=lambda name: transient(problem, name)),)


# The share of the weight gradient's operations that the Gram form may add and still be the cheapest, as measured on
# processors: where the products are plain matrices, and where windows overlap and products cost more than the sum.
GRAM_SHARE = {"matrix": 0.1, "windows": 0.25}

# A convolution call costs more than laying out the windows of so few positions: in each of many groups, and in the
# whole image where a call takes only one example because it has few channels.
FEW_POSITIONS = {"per group": 16, "per call": 1024}


def estimated(problem: Problem, methods: tuple[str, ...]) -> str:
    """Return the method that is the cheapest by the number of its operations."""
    order = _order_with_kernels(problem) if problem.kernels else _order(problem)
    return next((name for name in order if name in methods), methods[0])


def _order_with_kernels(problem: Problem) -> list[str]:
    """Return the methods that the compiled kernels make the cheapest, the best first."""
    share = gram_operations(problem) / problem.operations
    if problem.groups > 1:
        if problem.channels == 1:
            return ["direct", "each"]
        return ["grouped", "each"] if problem.positions < 1024 else ["each", "grouped"]
    if prod(problem.kernel) == 1:
        small = problem.operations < 4e6
        # To write and read a product of few positions takes longer than to form it.
        most = 0.15 if problem.positions <= 64 else 0.05
        return ["gram", "matrix"] if share < most and not small else ["matrix", "each"]
    # A library's call takes longer than so little arithmetic, and than that of channels that fill no vector.
    few = problem.operations < (4e6 if problem.channels >= 8 else 16e6) * problem.examples
    if share < (0.3 if problem.positions < 200 and not few else 0.2):  # a call is not filled by few positions
        return ["gram", "each"]
    return ["direct" if few else "each", "each", "gram"]


def _order(problem: Problem) -> list[str]:
    """Return the methods that torch's operators make the cheapest, the best first."""
    plain = problem.groups == 1 and prod(problem.kernel) == 1
    if problem.groups > 1:
        laid_out = problem.positions < FEW_POSITIONS["per group"]
    else:
        few = problem.channels % 8 != 0 and problem.positions <= FEW_POSITIONS["per call"]
        laid_out = plain or few or problem.kernel == problem.stride
    order = ["matrix", "grouped"] if laid_out else ["grouped", "matrix"]
    if gram_operations(problem) < GRAM_SHARE["matrix" if plain else "windows"] * problem.operations:
        order.insert(0, "gram")
    return order


def gram_operations(problem: Problem) -> int:
    """Return the operations that the Gram form adds to the weight gradient's, for the examples that are measured."""
    measured = problem.examples // problem.blocks
    shared = problem.positions**2 * problem.inputs
    if problem.shifted:
        shared = problem.phases * problem.phase_positions**2 * problem.channels
    return 2 * measured * (shared + problem.positions**2 * problem.outputs)


_TIMED: dict[tuple, dict[str, float]] = {}


def timed(
    problem: Problem, methods: dict[str, Callable], tensors: tuple, whole: Callable, memory: int | None
) -> dict[str, float]:
    """Return the seconds of each method, weight gradient included: the best of three runs after one that warms up.

    They are measured once per problem. Empty where nothing can be timed: while a graph is captured or compiled.
    """
    key = (problem, memory, tuple(methods))
    if key not in _TIMED:
        if cpu.is_switched_off() or (problem.device == "cuda" and torch.cuda.is_current_stream_capturing()):
            return {}
        _TIMED[key] = {
            name: _seconds(partial(_form, method, tensors, problem, memory, whole), problem.device)
            for name, method in methods.items()
        }
    return _TIMED[key]


def _form(method: Callable, tensors: tuple, problem: Problem, memory: int | None, whole: Callable) -> None:
    if method(*tensors, problem, memory).gradient is None:
        whole()


def _seconds(work: Callable, device: str) -> float:
    taken = []
    for _ in range(4):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
