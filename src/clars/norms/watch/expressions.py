"""Tensors that are computed from parameters alone, the same for all examples."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

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


def root_of(parameter: TrackedParameter) -> Tensor:
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
