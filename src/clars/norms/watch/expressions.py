"""Tensors that are computed from parameters alone, the same for all examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clars.norms.owners.tensors import replaced, tensors_in
from clars.norms.watch.tensor_functions import (
    EXPANSIONS,
    VIEWS,
    is_in_place,
    is_of_the_tensor_itself,
    keeps_every_element,
)
from clars.norms.watch.tracked_parameter import TrackedParameter, arrives

OUTSIDE = (
    "was computed with in the forward, and what came out met the batch outside of it, where nobody saw what each "
    "example contributes. Let it meet the batch within the forward."
)


@dataclass(eq=False)
class Expression:
    """A tensor that was computed from tracked parameters, and from nothing of the batch.

    Attributes:
        tensor: the value, with the graph that leads back to the roots.
        roots: stand for the parameters in that graph, so that gradients end there.
        preserving: whether it is a view of one parameter that has all its elements once: its gradients have the norms
            of the parameter's.
        before: what it was expanded from, where that is all that was done to it.
    """

    tensor: Tensor
    roots: dict[TrackedParameter, Tensor]
    preserving: bool = False
    before: "Expression | None" = None

    @property
    def layer(self) -> str:
        """The name of a layer in it."""
        return next(iter(self.roots)).layer

    @property
    def parameter(self) -> TrackedParameter:
        """The first of its parameters."""
        return next(iter(self.roots))

    def pulled_back(self, gradients: Tensor) -> Iterator[tuple[TrackedParameter, Tensor]]:
        """Yield each parameter with its gradients [n, *shape], for gradients [n, ...] of the tensor."""
        roots = list(self.roots.values())
        found = _pulled_back(self.tensor, roots, gradients.to(self.tensor.dtype))
        for parameter, root, each in zip(self.roots, roots, found):
            yield parameter, root.new_zeros(len(gradients), *root.shape) if each is None else each


Operand = TrackedParameter | Expression


def _root_of(parameter: TrackedParameter) -> Tensor:
    """Return what stands for a parameter in an expression: hooks on the parameter do not see what is pulled back."""
    with torch.enable_grad():
        root = parameter.tensor.view_as(parameter.tensor)

    def require_measured(_: Tensor) -> None:
        """Refuse a gradient that has come by none of the ways that are measured."""
        accumulator = parameter.accumulator
        if accumulator.last_pass != accumulator.current.number and arrives(node):
            accumulator.current.refuse(accumulator.layer, OUTSIDE)

    if root.requires_grad:
        (node, _), *_ = root.grad_fn.next_functions  # not the root's own, which keeps the hook: that would be a cycle
        root.register_hook(require_measured)
    return root


def _pulled_back(tensor: Tensor, roots: list[Tensor], gradients: Tensor) -> list[Tensor | None]:
    if tensor.grad_fn is None:
        return [None] * len(roots)
    try:
        return list(_gradient(tensor, roots, gradients, is_grads_batched=True))
    except RuntimeError:  # of an operator that cannot be batched
        each = [_gradient(tensor, roots, gradient) for gradient in gradients]
        return [None if some[0] is None else torch.stack(some) for some in zip(*each)]


def _gradient(tensor: Tensor, roots: list[Tensor], gradients: Tensor, **how) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(tensor, roots, gradients, retain_graph=True, allow_unused=True, **how)


class Expressions:
    """The tensors of one forward that were computed from parameters alone.

    Args:
        parameters: the tracked ones, by the id of the tensor that stands for each.
    """

    def __init__(self, parameters: Mapping[int, TrackedParameter]) -> None:
        self.parameters = parameters
        self._found: dict[int, Expression] = {}  # which keep their tensors, so that no other takes an id
        self._roots: dict[TrackedParameter, Tensor] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._found

    def of(self, value) -> Expression | None:
        """Return how a tensor was computed, if it is one of these; where gradients are on, not one made without."""
        found = self._found.get(id(value))
        return found if found is None or _is_computed(found.tensor) else None

    def compute(self, func: Callable, args: tuple, kwargs: dict, operands: Sequence[Operand]):
        """Compute something from parameters alone, and follow what comes out like them."""
        if is_in_place(func):
            return self._write(func, args, kwargs, operands)
        if is_of_the_tensor_itself(func):
            return func(*args, **kwargs)
        result = func(*self._from_roots(args), **self._from_roots(kwargs))
        (operand,) = operands if len(operands) == 1 else (None,)
        whole = operand is not None and func in VIEWS and keeps_every_element(func, args)
        whole = whole and (isinstance(operand, TrackedParameter) or operand.preserving)
        before = self._followed(operand) if func in EXPANSIONS and operand is not None else None
        for tensor in filter(_is_computed, tensors_in((result,))):
            preserving = whole and tensor.numel() == operand.tensor.numel()
            self._found[id(tensor)] = Expression(tensor, self._roots_of(operands), preserving, before)
        return result

    def _write(self, func: Callable, args: tuple, kwargs: dict, operands: Sequence[Operand]):
        """Write something computed from parameters into a tensor, or change one that is, which is computed then."""
        target = args[0]
        if id(target) in self.parameters:
            return func(*args, **kwargs)
        result = func(*self._from_roots(args), **self._from_roots(kwargs))
        memory = target.untyped_storage().data_ptr()
        changed = [each for each in self._found.values() if each.tensor.untyped_storage().data_ptr() == memory]
        roots = self._roots_of([*operands, *changed])
        for tensor in (target, target._base):
            if tensor is not None and _is_computed(tensor):
                self._found[id(tensor)] = Expression(tensor, roots)
        for each in changed:
            each.roots, each.preserving, each.before = roots, False, None
        return result

    def _roots_of(self, operands: Sequence[Operand]) -> dict[TrackedParameter, Tensor]:
        return {each: self._root(each) for operand in operands for each in parameters_of(operand)}

    def _from_roots(self, values):
        """Return arguments with what stands for parameters in the places of these."""
        found = (self.parameters.get(id(value)) for value in tensors_in((values,)))
        return replaced(values, {id(each.tensor): self._root(each) for each in found if each is not None})

    def _root(self, parameter: TrackedParameter) -> Tensor:
        if parameter not in self._roots:
            self._roots[parameter] = _root_of(parameter)
        return self._roots[parameter]

    def _followed(self, operand: Operand) -> Expression:
        """Return a parameter as what it is computed from itself."""
        if isinstance(operand, Expression):
            return operand
        root = self._root(operand)
        return Expression(root, {operand: root}, preserving=True)


def parameters_of(operand: Operand | None) -> list[TrackedParameter]:
    """Return the tracked parameters that an operand is, or is computed from."""
    if operand is None:
        return []
    return list(operand.roots) if isinstance(operand, Expression) else [operand]


def _is_computed(tensor: Tensor) -> bool:
    return tensor.requires_grad or not torch.is_grad_enabled()
