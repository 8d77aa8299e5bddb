"""What the backward passes of a layer of some shape do on an accelerator: found out once, done the same way after.

A layer in C++ knows its plan by a number, and keeps it for as long as a graph may need it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol
from weakref import ref

import torch
from torch import Tensor

from clars import native
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.sizes import Sizes
from clars.precision import wide

if TYPE_CHECKING:
    from clars.norms.methods.chooser import Chooser


class Formed(NamedTuple):
    """What a plan yields: gradients, None where they are to be formed as usual, and squared norms."""

    input: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    weight_squares: Tensor | None = None
    bias_squares: Tensor | None = None


class Plan(Protocol):
    """What a layer's backward passes do; `for_weight_alone` where that is for the weight's gradient and norms."""

    for_weight_alone: bool

    def __call__(
        self, gy: Tensor, x: Tensor, weight: Tensor, saved: Sequence[Tensor], needs_input: bool, first: int, last: int
    ) -> Formed:
        """Form what there is a better way for than the usual one.

        Args:
            gy, x, weight: of the call.
            saved: what else the layer's forward pass left.
            needs_input: whether the input's gradient is wanted.
            first, last: the examples that are measured are those from `first` to before `last`.
        """


_PLANS: dict[int, Plan] = {}
_NUMBERS = count(1)


def planned(kind: str, plan: Plan, x: Tensor, weight: Tensor, group: int, arguments: Sequence) -> native.NativeLayer:
    """Return a layer in C++ that goes by a plan, which lives as long. The arguments are those of its kind."""
    for number in native.kernel("ended_plans")():
        _PLANS.pop(number, None)
    _PLANS[number := next(_NUMBERS)] = plan
    return native.NativeLayer(kind, x, weight, group, number, *arguments)


def plan_of(number: int) -> Plan:
    """Return the plan of a number."""
    return _PLANS[number]


class ProductPlan:
    """The method for a weight whose gradient is a sum of products.

    Args:
        operands_of: from (gy, x, weight) to the operands of a call.
        chooser: asked for the method at the first backward pass; not kept alive.
        group: how many examples are measured together.
    """

    for_weight_alone = True

    def __init__(
        self, operands_of: Callable[[Tensor, Tensor, Tensor], Operands], chooser: "Chooser", group: int
    ) -> None:
        self.operands_of, self.chooser, self.group, self.memory = operands_of, ref(chooser), group, chooser.memory
        self._chosen: dict[int, tuple[Method, Sizes]] = {}  # by how many examples are measured

    def __call__(self, gy, x, weight, saved, needs_input, first, last) -> Formed:
        operands, examples = self.operands_of(gy, x, weight), last - first
        part = examples < x.shape[0]
        if part:
            operands = operands.of(slice(first, last))
        chosen = self._chosen.get(examples) or self._choose(operands, examples)
        if chosen is None:  # nobody takes the norms
            return Formed(weight_squares=gy.new_full((examples,), torch.nan, dtype=wide(gy.dtype)))
        method, sizes = chosen
        gradient, squares = method.form(operands, sizes, self.memory)
        if part or gradient is None:
            return Formed(weight_squares=squares)
        return Formed(weight=gradient.to(weight.dtype), weight_squares=squares)

    def _choose(self, operands: Operands, examples: int) -> tuple[Method, Sizes] | None:
        chooser = self.chooser()
        if chooser is None:
            return None
        sizes = replace(operands.sizes(), group=min(self.group, examples))
        chosen = chooser.choose(sizes, operands), sizes
        if chooser.is_settled(sizes):
            self._chosen[examples] = chosen
        return chosen


class KernelPlan:
    """A layer all of whose backward pass one call of kernels does.

    Args:
        backward: called with gy, x, what the forward left, weight, `arguments`, and what is wanted (see `device`).
        group: how many examples are measured together.
    """

    for_weight_alone = False

    def __init__(self, backward: Callable[..., tuple[Tensor, ...]], arguments: tuple, group: int) -> None:
        self.backward, self.arguments, self.group = backward, arguments, group

    def __call__(self, gy, x, weight, saved, needs_input, first, last) -> Formed:
        found = self.backward(gy, x, *saved, weight, *self.arguments, needs_input, first, last, self.group)
        input_gradient, *own, scale, shift = found
        if weight.dtype != own[0].dtype:
            own = [value.to(weight.dtype) for value in own]
        return Formed(input_gradient, *own, scale, shift)
