"""The sizes of one call of a layer, by which the method for its weight gradient is chosen."""

from dataclasses import dataclass
from math import ceil, prod

import torch

from clars.norms.methods.groups import number


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call of a layer, and what it is computed on.

    In each of `groups` groups, the gradient of an example is a sum over T positions of products of P outputs and
    D inputs. D counts each channel once per tap of the kernel.

    Attributes:
        examples: B, those whose products are formed.
        positions, inputs, outputs: T, D and P.
        channels: of the input, in each group.
        input_size: height and width, or as many as there are dimensions.
        device: the type of the device.
        threads: of a processor.
        channels_last: whether the input's channels lie together in memory.
        kernel, stride: of a convolution; empty for a linear layer.
        padded: whether its input is.
        native: whether the C++ kernels apply (see `clars.native`).
        accelerated: whether the operators for accelerators do (see `clars.native.device`).
        blocks: of the batch, one of which is measured.
        group: consecutive examples whose products are summed before the norm is taken; the last may be fewer.
    """

    examples: int
    positions: int
    inputs: int
    outputs: int
    channels: int
    input_size: tuple[int, ...]
    device: str
    dtype: torch.dtype
    threads: int
    channels_last: bool = False
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padded: bool = False
    native: bool = False
    accelerated: bool = False
    blocks: int = 1
    group: int = 1

    @property
    def products(self) -> int:
        """How many products there are, each with a norm of its own."""
        return number(self.examples, self.group)

    @property
    def summed(self) -> int:
        """Over how many positions a product is a sum."""
        return self.group * self.positions

    @property
    def few(self) -> bool:
        """Whether there are too few products for each thread to take as many."""
        return self.group > 1 and self.products < 2 * self.threads and self.products % self.threads > 0

    @property
    def input_positions(self) -> int:
        return prod(self.input_size)

    @property
    def operations(self) -> int:
        """Operations of the weight gradient."""
        return 2 * self.examples * self.groups * self.positions * self.inputs * self.outputs

    @property
    def weights(self) -> int:
        """How many numbers a gradient has."""
        return self.groups * self.inputs * self.outputs

    @property
    def bare(self) -> bool:
        """Whether a position of the output sees one of the input, so that no windows need to be laid out."""
        return prod(self.kernel) == 1 and not self.padded

    @property
    def pointwise(self) -> bool:
        """Whether this is so in one group: the products are plain matrices."""
        return self.groups == 1 and self.bare

    @property
    def shifted(self) -> bool:
        """Whether windows overlap so that their inner products are sums of shifted ones (see `window_gram`).

        Each phase of a stride has sums of its own, which only the C++ kernels form.
        """
        overlap = any(taps > step for taps, step in zip(self.kernel, self.stride))
        return overlap and (self.native or set(self.stride) == {1})

    @property
    def windows(self) -> int:
        """How many numbers the windows of a product take, laid out; 0 where they need not be."""
        laid_out = prod(self.kernel) > 1 or set(self.stride) > {1}
        return self.groups * self.inputs * self.summed if laid_out else 0

    @property
    def planar(self) -> bool:
        """Whether it has two dimensions at most, as the kernels for accelerators want."""
        return len(self.kernel) <= 2

    @property
    def depthwise(self) -> bool:
        """Whether each output channel of a convolution sees an input channel of its own."""
        return self.groups > 1 and self.channels == self.outputs == 1

    @property
    def phases(self) -> int:
        """How many phases of the stride the windows see."""
        return prod([min(taps, step) for taps, step in zip(self.kernel, self.stride)])

    @property
    def phase_positions(self) -> int:
        """How many positions of the input each of them has at most."""
        return prod([ceil(length / step) for length, step in zip(self.input_size, self.stride)])
