"""The tensors of a linear layer's or a convolution's call, in the forms that the methods take them in."""

from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clars import native
from clars.native import device, where
from clars.norms.methods.sizes import Sizes


class Geometry(NamedTuple):
    """The hyper-parameters of a convolution, each but the last for every dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class LinearOperands:
    """Of y = x W^T: gy [B, P, T], x [B, D, T], weight [P, D]."""

    gy: Tensor
    x: Tensor
    weight: Tensor

    def of(self, rows: slice) -> "LinearOperands":
        return replace(self, gy=self.gy[rows], x=self.x[rows])

    def sizes(self) -> Sizes:
        (examples, inputs, positions), outputs = self.x.shape, self.gy.shape[1]
        return Sizes(
            examples=examples,
            positions=positions,
            inputs=inputs,
            outputs=outputs,
            channels=inputs,
            input_size=(positions,),
            device=self.x.device.type,
            dtype=self.x.dtype,
            threads=where.threads(),
            native=native.applies(self.x, self.gy),
            accelerated=_accelerated(self.x),
        )

    def images(self) -> tuple[Tensor, Tensor, Geometry, tuple[int, int]]:
        point = Geometry((1, 1), (0, 0), (1, 1), 1)
        return self.gy.unsqueeze(3), self.x.unsqueeze(3), point, (1, 1)

    def outputs(self) -> Tensor:
        return self.gy

    def windows(self) -> Tensor:
        return self.x

    def gradient(self) -> Tensor:
        return self.gy.mT.flatten(0, 1).T @ self.x.mT.flatten(0, 1)


@dataclass(frozen=True)
class ConvolutionOperands:
    """Of a convolution: gy [B, P, *size], x [B, C, *input size], weight [P, C / groups, *kernel]."""

    gy: Tensor
    x: Tensor
    weight: Tensor
    geometry: Geometry

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    def of(self, rows: slice) -> "ConvolutionOperands":
        return replace(self, gy=self.gy[rows], x=self.x[rows])

    def sizes(self) -> Sizes:
        x, groups = self.x, self.geometry.groups
        return Sizes(
            examples=len(x),
            positions=prod(self.gy.shape[2:]),
            inputs=prod(self.weight.shape[1:]),
            outputs=len(self.weight) // groups,
            channels=x.shape[1] // groups,
            input_size=tuple(x.shape[2:]),
            channels_last=not x.is_contiguous() and x.movedim(1, -1).is_contiguous(),
            groups=groups,
            kernel=self.kernel,
            stride=self.geometry.stride,
            padded=any(self.geometry.padding),
            device=x.device.type,
            dtype=x.dtype,
            threads=where.threads(),
            native=native.applies(x, self.gy),
            accelerated=_accelerated(x),
        )

    def images(self) -> tuple[Tensor, Tensor, Geometry, tuple[int, int]]:
        kernel = self.weight.shape[2:]
        if len(kernel) == 2:
            return self.gy, self.x, self.geometry, kernel
        stride, padding, dilation, groups = self.geometry
        return (
            self.gy.unsqueeze(2),
            self.x.unsqueeze(2),
            Geometry((1, *stride), (0, *padding), (1, *dilation), groups),
            (1, *kernel),
        )

    def outputs(self) -> Tensor:
        return positions_last(self.gy)

    def windows(self) -> Tensor:
        stride, padding, dilation, _ = self.geometry
        if prod(self.kernel) > 1 or any(padding):
            return F.unfold(self.x, self.kernel, dilation, padding, stride)
        x = self.x if set(stride) == {1} else self.x[(..., *(slice(None, None, step) for step in stride))]
        return positions_last(x)

    def gradient(self) -> Tensor:
        return convolution_backward(self.gy, self.x, self.weight, self.geometry, wrt_input=False)


def _accelerated(x: Tensor) -> bool:
    return where.accelerated(x) and device.has_products(x)


def positions_last(x: Tensor) -> Tensor:
    """Return x [b, C, *size] as [b, C, T], without a copy where channels lie together in memory too."""
    channels_last = x.movedim(1, -1)
    if channels_last.is_contiguous() and not x.is_contiguous():
        return channels_last.flatten(1, -2).mT
    return x.flatten(2)


def convolution_backward(gy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, *, wrt_input: bool) -> Tensor:
    """Return the gradient of a convolution's input, or of its weight, as autograd forms it."""
    stride, padding, dilation, groups = geometry
    mask, none = (wrt_input, not wrt_input, False), (0,) * len(stride)
    both = torch.ops.aten.convolution_backward.default(
        gy, x, weight, None, stride, padding, dilation, False, none, groups, mask
    )
    return both[0] if wrt_input else both[1]
