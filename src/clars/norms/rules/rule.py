"""What every kind of layer has in common: the form of a rule, of its backward pass, and of a call that it measures."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Size, Tensor

from clars.errors import UnsupportedLayerError
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.measure import Measure

if TYPE_CHECKING:
    from clars.native import NativeLayer
    from clars.norms.methods.chooser import Chooser, Cut

__all__ = ["Contribution", "Find", "Gradients", "LayerCall", "Measure", "Parameter", "Rule", "need_batch"]


class Gradients(NamedTuple):
    """The result of a rule's backward pass: the input's gradient, [B, ...], and what weight and bias get."""

    input: Tensor | None
    weight: Contribution
    bias: Contribution


class Rule(Protocol):
    """One call of one kind of layer: its hyper-parameters, its forward and its backward, on plain tensors.

    Dimension 0 of input and output is the batch of B examples.
    """

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple]:
        """Return the output and what the backward pass needs beside x and weight (tensors and plain values)."""

    def backward(
        self, gy: Tensor, x: Tensor, weight: Tensor, saved: tuple, needs: tuple[bool, bool, bool], measure: Measure
    ) -> Gradients:
        """Return gradients and squared norms.

        Args:
            gy: the output's gradient, in the shape of the output.
            x, weight: as in `forward`.
            saved: what `forward` returned beside the output.
            needs: which of (x, weight, bias) require a gradient.
            measure: which examples to measure, and in groups of how many; None for gradients alone.
        """

    def contributions(
        self, gy: Tensor, x: Tensor, weight: Tensor, saved: tuple, rows: slice, group: int, which: int
    ) -> Tensor:
        """Return what each group contributes to the gradient of the weight, or the bias, [groups, *shape].

        Args:
            gy, x, weight, saved: as in `backward`.
            rows: the examples wanted: whole groups, or a smaller last one.
            group: so many consecutive examples are summed.
            which: 0 for the weight, 1 for the bias.
        """

    def leading(self, x: Tensor) -> int:
        """Return how many of the first dimensions of x are alike, so that any of them may hold the examples."""
        return 1

    def native_layer(self, x: Tensor, weight: Tensor, chooser: "Chooser", cut: "Cut") -> "NativeLayer | None":
        """Return the layer in C++ that does forward and backward of calls like this one (see `native.NativeLayer`).

        None where there is none. `cut` tells how the batch is cut.
        """
        return None


class Parameter(Protocol):
    """A tracked parameter, as far as rules know of it."""

    @property
    def layer(self) -> str:
        """The name of its layer."""

    def sees(self, rows: int) -> bool:
        """Tell whether an input of so many rows may have the batch as its first dimension."""


class Find(Protocol):
    """What a rule is told of the tracked parameters among a call's tensors."""

    def __call__(self, tensor: Tensor | None) -> Parameter | None:
        """Return which tracked parameter a tensor is that is about to be measured; None for others."""

    def expand(self, shape: Size, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Expand tensors to `shape` [B, ...], so that each example's own gradient of a parameter can be measured."""


def as_they_are(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast nothing."""
    return tensors


class LayerCall(NamedTuple):
    """A call of a layer: its rule, what the rule is applied to, and which tracked parameters weight and bias are.

    `cast` is what autocast does with x, weight and bias.
    """

    rule: Rule
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    parameters: tuple[Parameter | None, Parameter | None]
    cast: Callable[..., tuple[Tensor | None, ...]] = as_they_are


class NoBatchError(UnsupportedLayerError):
    """A layer's input has no dimension for the batch, so that no rule of any kind can measure it."""


def need_batch(find: Find, weight: Tensor | None, bias: Tensor | None, x: Tensor, at_least: int) -> None:
    """Refuse an input of fewer dimensions than the batch and an example's take.

    Raises:
        NoBatchError: it has fewer than `at_least`.
    """
    if x.dim() < at_least:
        problem = f"got an input of shape {tuple(x.shape)} without a batch dimension. Give it one with x.unsqueeze(0)."
        raise NoBatchError({(find(weight) or find(bias)).layer: problem})
