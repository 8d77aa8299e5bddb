"""What has become of the gradients that norms belong to: whether anything is left of them."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Holder(Protocol):
    """Where the gradient of one parameter adds up from backward pass to backward pass."""

    cut: bool
    """Whether this process holds only a part of the gradient, so that a zero here says nothing about the whole."""

    def grads(self) -> list[Tensor]:
        """Return what has added up so far; nothing where there is none."""

    def elsewhere(self) -> bool:
        """Tell whether something has added up that clearing `.grad` does not clear."""


class Own:
    """The parameter's own `.grad`."""

    cut = False

    def __init__(self, module: nn.Module, name: str) -> None:
        self._parameters, self._name = module._parameters, name

    def grads(self) -> list[Tensor]:
        parameter = self._parameters.get(self._name)
        grad = None if parameter is None else parameter.grad
        return [] if grad is None else [grad]

    def elsewhere(self) -> bool:
        return False


class Gradients:
    """The gradients of one layer's parameters."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self.holders = holders

    @property
    def cut(self) -> bool:
        return any(holder.cut for holder in self.holders)

    def present(self) -> list[Tensor]:
        """Return the tensors that they are in."""
        return [grad for holder in self.holders for grad in holder.grads()]

    def elsewhere(self) -> bool:
        """Tell whether a part of them is where clearing `.grad` does not clear it."""
        return any(holder.elsewhere() for holder in self.holders)


@torch.no_grad()
def any_left(gradients: Sequence[Gradients]) -> list[Tensor]:
    """Return for each layer a boolean scalar tensor: whether any element of its gradients differs from zero.

    The values alone tell: zeros may be written past autograd's sight (`grad.data.zero_()`). The device is not waited
    for. What is not a number differs from zero. Where gradients are cut, a part that is zero says nothing and all parts
    together do.
    """
    present = [[grad for grad in each.present() if grad.numel()] for each in gradients]
    every = [grad for grads in present for grad in grads]
    largest = iter(torch._foreach_norm(every, float("inf")) if every else ())
    left = [torch.stack([next(largest) != 0 for _ in grads] or [torch.tensor(False)]).any() for grads in present]
    if any(each.cut for each in gradients):
        left = [torch.stack([flag.to(left[0].device) for flag in left]).any()] * len(left)
    return left
