"""What layers in C++ ask of Python on the way back: which examples are measured, and that their norms are booked."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clars.norms.methods.planned import Formed, plan_of
from clars.norms.watch import contributing
from clars.norms.watch.accumulator import Accumulator
from clars.norms.watch.registry import REGISTRY

_NOTHING = torch.empty(0)


def accelerated_backward(
    plan: int,
    of_weight: int,
    of_bias: int,
    backward_pass: int,
    spent: bool,
    partial: bool,
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Sequence[Tensor],
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
    bias_squares: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """Do the part of a layer's backward pass on an accelerator that its plan, by its number, has a way for.

    Args:
        plan: of the layer.
        of_weight, of_bias: the numbers of their accumulators; 0 for what nobody measures.
        backward_pass, spent, partial: as for `add_squares`.
        gy, x, weight, saved: of the call.
        needs_input, needs_weight, needs_bias: which gradients are wanted.
        bias_squares: the bias's, of all examples or groups, where they are known.

    Returns the gradients of input, weight and bias, empty where they are to be formed as usual, and whether anything
    was added.
    """
    examples = x.shape[0]
    weights = _entered(of_weight, backward_pass, spent, partial, examples) if of_weight else None
    biases = weights
    if of_bias != of_weight:
        biases = _entered(of_bias, backward_pass, spent, partial, examples) if of_bias else None
    late = any(_is_late(number) for number in (of_weight, of_bias))
    asked = weights or biases
    first, last = _measured(asked) if asked is not None else (0, examples)
    got = Formed()
    way = plan_of(plan)
    if needs_weight or not way.for_weight_alone:
        got = way(gy, x, weight, saved, needs_input, first, last)
    if bias_squares is None:
        bias_squares = got.bias_squares
    elif last - first < examples:
        bias_squares = bias_squares[first:last]
    if weights is not None:
        weights.add(got.weight_squares + bias_squares if of_bias == of_weight else got.weight_squares)
    if late:
        keep_back(of_weight, of_bias, backward_pass, spent, partial, gy, x, weight, saved)
    if biases is not None and biases is not weights:
        biases.add(bias_squares)
    gradients = (got.input, got.weight, got.bias)
    return *(_NOTHING if value is None else value for value in gradients), late or asked is not None


def _entered(number: int, backward_pass: int, spent: bool, partial: bool, examples: int) -> Accumulator | None:
    """Return the accumulator of a number, if a layer's backward pass is to add to it."""
    accumulator = REGISTRY.get(number)
    if accumulator is None:  # nobody tracks the layer any more
        return None
    if partial and not any(parameter.gradient_arrives() for parameter in accumulator.parameters):
        return None
    if accumulator.several:  # which nobody knew when the call was made: see `keep_back`
        return None
    return accumulator if accumulator.enter(backward_pass, examples // accumulator.rows, spent) else None


def _is_late(number: int) -> bool:
    accumulator = REGISTRY.get(number) if number else None
    return accumulator is not None and accumulator.several


def keep_back(
    of_weight: int,
    of_bias: int,
    backward_pass: int,
    spent: bool,
    partial: bool,
    gy: Tensor,
    x: Tensor,
    weight: Tensor,
    saved: Sequence[Tensor],
) -> None:
    """Keep back what a call contributes to layers that were used again after it was made; arguments as above."""
    late = [REGISTRY.get(number) for number in dict.fromkeys((of_weight, of_bias)) if _is_late(number)]
    rule, rows, operands = late[0].made_by
    entered = [each for each in late if each.enter(backward_pass, len(x) // rows, spent)]
    parameters = {
        parameter
        for operand in operands
        for parameter in contributing.parameters_of(operand)
        if parameter.accumulator in entered and (not partial or parameter.gradient_arrives())
    }
    if parameters:
        measure = entered[0].current.measure
        shares = contributing.shares_of(rule, gy, x, weight, tuple(saved), measure.of_rows(rows).group, rows)
        contributing.add_shares(operands, shares, contributing.Asked(measure, parameters, entered), len(x) // rows)


def _measured(accumulator: Accumulator) -> tuple[int, int]:
    """Return the first of the rows to be measured, and the one after the last."""
    first, last = accumulator.current.measured()
    return first * accumulator.rows, last * accumulator.rows


def add_squares(
    number: int, backward_pass: int, spent: bool, partial: bool, examples: int, squares: Tensor
) -> tuple[int, int, bool]:
    """Add to an accumulator, by its number, the measured part of `squares`, which a layer in C++ is to fill.

    Args:
        number: of the accumulator.
        backward_pass: autograd's number of the pass.
        spent: whether an earlier pass has measured this same call.
        partial: whether the pass yields only some gradients, or leaves them elsewhere than in the parameters.
        examples: how many rows the layer saw.
        squares: what is to be filled: a number for each of them, or for each group.

    Returns the first of the examples to be measured, the one after the last, and whether anything was added. A first
    of -1 asks for `keep_back`.
    """
    if _is_late(number):
        return -1, examples, False
    accumulator = _entered(number, backward_pass, spent, partial, examples)
    if accumulator is None:
        return 0, examples, False
    first, last = _measured(accumulator)
    rows = accumulator.rows
    accumulator.add(squares if last - first == examples else squares[first // rows : last // rows])
    return first, last, True


_LIBRARY = torch.library.Library("clars", "FRAGMENT")
_ARGUMENTS = "int number, int backward_pass, bool spent, bool partial, int examples, Tensor squares"
_LIBRARY.define(f"add_squares({_ARGUMENTS}) -> (int, int, bool)")
_LIBRARY.impl("add_squares", add_squares, "CompositeImplicitAutograd")
_ACCUMULATORS = "int plan, int of_weight, int of_bias, int backward_pass, bool spent, bool partial"
_TENSORS = "Tensor gy, Tensor x, Tensor weight, Tensor[] saved"
_NEEDS = "bool needs_input, bool needs_weight, bool needs_bias, Tensor? bias_squares"
_LIBRARY.define(f"accelerated_backward({_ACCUMULATORS}, {_TENSORS}, {_NEEDS}) -> (Tensor, Tensor, Tensor, bool)")
_LIBRARY.impl("accelerated_backward", accelerated_backward, "CompositeImplicitAutograd")
_LIBRARY.define(f"keep_back(int of_weight, int of_bias, int backward_pass, bool spent, bool partial, {_TENSORS}) -> ()")
_LIBRARY.impl("keep_back", keep_back, "CompositeImplicitAutograd")
