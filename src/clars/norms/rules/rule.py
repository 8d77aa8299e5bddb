"""What every kind of layer has in common: the form of a rule and the result of its backward pass."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from clars.native.kernels import Layer
    from clars.norms.estimator import Estimator


class Contribution(NamedTuple):
    """One parameter's gradient and the squared norms [b] of the measured examples' contributions to it.

    The contribution of example i is the part of the gradient that flows through row i of the layer's output
    gradient. The contributions sum to the gradient, also where examples share batch statistics.
    """

    gradient: Tensor | None = None
    squares: Tensor | None = None


class Gradients(NamedTuple):
    """The result of a rule's backward pass."""

    input: Tensor | None
    weight: Contribution
    bias: Contribution


class Measure(NamedTuple):
    """Which examples of a backward pass are measured, and by what means.

    Attributes:
        rows: the measured examples; all of them, or one of several blocks of the batch.
        memory: bytes that one piece of work may take beside the gradient itself; None is the device's default.
        timed: whether methods are timed once per shape instead of estimated; None leaves it to the device.
        report: called, where somebody wants to know, with the arguments of `choose` but for this and the chosen name.
    """

    rows: slice = slice(None)
    memory: int | None = None
    timed: bool | None = None
    report: Callable | None = None

    @property
    def whole(self) -> bool:
        return self.rows == slice(None)

    def of(self, squares: Tensor) -> Tensor:
        """Return the measured examples' part of what was formed of all of them."""
        return squares if self.whole else squares[self.rows]


class Rule(Protocol):
    """One call of one kind of layer: its hyper-parameters, its forward and its backward, on plain tensors."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple]:
        """Return the output and what the backward pass needs beside x and weight (tensors and plain values)."""

    def backward(
        self, gy: Tensor, x: Tensor, weight: Tensor, saved: tuple, needs: tuple[bool, bool, bool], measure: Measure
    ) -> Gradients:
        """Return gradients and squared norms; `needs` tells which of (x, weight, bias) require a gradient."""

    def compiled(self, x: Tensor, weight: Tensor, estimator: "Estimator") -> "Layer | None":
        """Return the compiled layer that does forward and backward of calls like this one (see `cpu.Layer`).

        None where there is none.
        """
        return None
