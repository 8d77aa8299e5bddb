"""Convolutions of one to three dimensions: stride, dilation, padding, groups, depthwise."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _ntuple

from clars import native
from clars.native import where
from clars.norms.methods.chooser import Chooser, Cut
from clars.norms.methods.grouped import stacked_products
from clars.norms.methods.groups import summed
from clars.norms.methods.measure import bias_contribution, weight_contribution
from clars.norms.methods.operands import ConvolutionOperands, Geometry, convolution_backward
from clars.norms.methods.sizes import Sizes
from clars.norms.rules.rule import Contribution, Find, Gradients, LayerCall, Measure, Rule, need_batch
from clars.precision import wide


@dataclass(frozen=True)
class Convolution(Rule):
    """A convolution of x [B, C, *size] with weight [P, C / groups, *kernel] and zero padding."""

    geometry: Geometry

    def forward(self, x, weight, bias):
        stride, padding, dilation, groups = self.geometry
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, (0,) * len(stride), groups), ()

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        for_input, for_weight, for_bias = needs
        return Gradients(
            self.input_gradient(gy, x, weight) if for_input else None,
            weight_contribution(self.operands(gy, x, weight), measure) if for_weight else Contribution(),
            bias_contribution(gy.flatten(2), measure) if for_bias else Contribution(),
        )

    def input_gradient(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of x, as autograd forms it."""
        return convolution_backward(gy, x, weight, self.geometry, wrt_input=True)

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        if which:
            return summed(gy[rows].flatten(2).sum(2, dtype=wide(gy.dtype)), group)
        return stacked_products(self.operands(gy[rows], x[rows], weight), group)

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> native.NativeLayer | None:
        if where.accelerated(x):
            return chooser.accelerated_layer("AcceleratedConv", tuple(self.geometry), x, weight, self.operands, cut)
        if any(self.geometry.padding) and prod(weight.shape[2:]) == 1:  # no kernel for what such a rarity sees
            return None
        return chooser.native_layer("Conv", tuple(self.geometry), x, weight, self._foreseen, cut)

    def _foreseen(self, x: Tensor, weight: Tensor) -> Sizes:
        y, _ = self.forward(x.to("meta"), weight.to("meta"), None)
        return self.operands(y, x, weight).sizes()

    def operands(self, gy: Tensor, x: Tensor, weight: Tensor) -> ConvolutionOperands:
        """Return the tensors of a call as the methods take them."""
        return ConvolutionOperands(gy, x, weight, self.geometry)


def _convolution(dimensions: int) -> Callable[..., LayerCall]:
    """Return what stands for torch.nn.functional.conv1d, conv2d or conv3d: input [B, C, *size], bias [P]."""
    each = _ntuple(dimensions)

    def convolution(find: Find, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> LayerCall:
        need_batch(find, weight, bias, input, dimensions + 2)
        parameters = find(weight), find(bias)
        dilation = each(dilation)
        if isinstance(padding, str):
            input, padding = resolve_padding(input, tuple(weight.shape[2:]), padding, dilation)
        rule = Convolution(Geometry(each(stride), tuple(each(padding)), dilation, groups))
        return LayerCall(rule, input, weight, bias, parameters, where.cast_as_autocast)

    return convolution


def resolve_padding(
    x: Tensor, kernel: tuple[int, ...], padding: str, dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn 'valid' and 'same' into numbers; where 'same' is uneven, pad x by the excess on the far side first."""
    if padding == "valid":
        return x, (0,) * len(kernel)
    total = [step * (size - 1) for step, size in zip(dilation, kernel)]
    excess = [amount % 2 for amount in total]
    if any(excess):
        x = F.pad(x, [side for amount in reversed(excess) for side in (0, amount)])
    return x, tuple(amount // 2 for amount in total)


CALLS = {F.conv1d: _convolution(1), F.conv2d: _convolution(2), F.conv3d: _convolution(3)}
