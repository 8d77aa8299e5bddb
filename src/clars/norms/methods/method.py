"""What an exact method is: when it applies, what it takes, and how it forms a weight's gradient and the norms."""

from abc import ABC, abstractmethod
from math import ceil
from typing import Protocol

from torch import Tensor

from clars.native import most_workers, where
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.operands import Geometry
from clars.norms.methods.sizes import Sizes


class Operands(Protocol):
    """The tensors of one call whose weight gradient is wanted, and how they make it up.

    Attributes:
        gy: output gradients [B, P, *positions].
        x: inputs [B, D or channels, *positions of the input].
        weight: [P, D or channels / groups, *kernel].
    """

    gy: Tensor
    x: Tensor
    weight: Tensor

    def of(self, rows: slice) -> "Operands":
        """Return those of some examples."""

    def sizes(self) -> Sizes:
        """Return the sizes by which a method is chosen."""

    def outputs(self) -> Tensor:
        """Return the output gradients as [B, P, T], P over all groups."""

    def windows(self) -> Tensor:
        """Return what the weight sees at each position as [B, D, T], D over all groups."""

    def images(self) -> tuple[Tensor, Tensor, Geometry, tuple[int, int]]:
        """Return gy [B, P, Ho, Wo], x [B, C, H, W], geometry and kernel of this call as one of two dimensions.

        It has two or fewer; a linear layer's positions are a column of pixels.
        """

    def gradient(self) -> Tensor:
        """Return the weight's gradient as autograd forms it, [P, D or channels / groups, *kernel]."""


class Method(ABC):
    """An exact way to form the gradient of a weight together with the norm of each example's share of it.

    A weight gradient is a sum over examples of products of an output gradient (P outputs at T positions) and an input
    (D inputs at T positions). The methods agree to rounding and differ in what they cost for which sizes.
    """

    name: str

    @abstractmethod
    def applies(self, sizes: Sizes) -> bool:
        """Tell whether the method is there for such a call."""

    @abstractmethod
    def numbers(self, sizes: Sizes) -> int:
        """Return how many numbers it holds per product beside input, output gradient and the gradient itself."""

    @abstractmethod
    def operations(self, sizes: Sizes) -> float:
        """Return its cost in units of the weight gradient's own operations: an estimate, to choose by."""

    @abstractmethod
    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        """Return the gradient, or None in its place where it is to be formed as usual, and the squared norms.

        Those are of each example's share of it, or of the sum over each group of examples.

        Args:
            operands: the call.
            sizes: of it.
            memory: bytes that may be taken beside the gradient; None for the device's default.
        """

    def is_native(self, sizes: Sizes) -> bool:
        """Tell whether one call of a C++ kernel does all of it."""
        return False

    def bytes(self, sizes: Sizes) -> int:
        """Return the bytes it holds per product beside input, output gradient and the gradient itself."""
        return self.numbers(sizes) * sizes.dtype.itemsize

    def at_once(self, sizes: Sizes, memory: int | None) -> int:
        """Return how many products a C++ kernel has under way: one per thread, unless memory forbids.

        Where there are too few for all threads, these share the work on one.
        """
        return 1 if sizes.few else min(sizes.products, sizes.threads, most_workers(self.bytes(sizes), memory))

    def pieces(self, sizes: Sizes, memory: int | None) -> list[slice]:
        """Cut the examples into consecutive slices of about equal length whose working set stays within the bound.

        A group is not cut, and a smaller last one is a slice of its own.
        """
        if self.is_native(sizes):
            size = self.at_once(sizes, memory) * sizes.group
            return [slice(start, min(start + size, sizes.examples)) for start in range(0, sizes.examples, size)]
        each = self.bytes(sizes)
        if memory is None:  # a cache is wanted, so count what is read too
            read = sizes.groups * (sizes.outputs * sizes.positions + sizes.channels * sizes.input_positions)
            each += sizes.group * read * sizes.dtype.itemsize
            memory = where.working_set(sizes.device) * (sizes.threads if where.on_processor(sizes.device) else 1)
        return slices(sizes.examples, each, memory, sizes.group)


def slices(examples: int, bytes_per_group: int, memory: int, group: int = 1) -> list[slice]:
    """Cut `examples` into consecutive slices of about equal length of at most `memory` bytes, one group at least.

    Groups are of `group` examples each; what is left over is a slice of its own.
    """
    groups = examples // group
    most = min(groups, max(1, memory // max(1, bytes_per_group)))
    size = ceil(groups / ceil(groups / most)) * group
    whole = groups * group
    cut = [slice(start, min(start + size, whole)) for start in range(0, whole, size)]
    return cut if whole == examples else [*cut, slice(whole, examples)]
