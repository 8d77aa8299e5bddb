"""Transposed convolutions of one to three dimensions: stride, padding, output padding, dilation, groups.

Their weight gradient is that of the convolution that they transpose: it sees their output's gradient, and their input
is the gradient of what it puts out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _ntuple

from clars.native import where
from clars.norms.methods.chooser import Chooser, Cut
from clars.norms.methods.operands import ConvolutionOperands, Geometry
from clars.norms.rules.convolution import Convolution
from clars.norms.rules.rule import Find, LayerCall, need_batch


@dataclass(frozen=True)
class TransposedConvolution(Convolution):
    """The transpose of a convolution, of x [B, C, *size] with weight [C, P / groups, *kernel]."""

    output_padding: tuple[int, ...]

    def forward(self, x, weight, bias):
        stride, padding, dilation, groups = self.geometry
        return torch.convolution(x, weight, bias, stride, padding, dilation, True, self.output_padding, groups), ()

    def input_gradient(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        how = (stride, padding, dilation, True, self.output_padding, groups, (True, False, False))
        return torch.ops.aten.convolution_backward.default(gy, x, weight, None, *how)[0]

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> None:
        return None

    def operands(self, gy: Tensor, x: Tensor, weight: Tensor) -> ConvolutionOperands:
        """Return the tensors of a call as the methods take them, with the parts of gy and x exchanged.

        Output padding of a whole stride or more has room for further positions, at which x has nothing.
        """
        further = [extra // step for extra, step in zip(self.output_padding, self.geometry.stride)]
        if any(further):
            x = F.pad(x, [side for amount in reversed(further) for side in (0, amount)])
        return ConvolutionOperands(x, gy, weight, self.geometry)


def _transposed(dimensions: int) -> Callable[..., LayerCall]:
    """Return what stands for conv_transpose1d, 2d or 3d of torch.nn.functional: input [B, C, *size], bias [P]."""
    each = _ntuple(dimensions)

    def transposed_convolution(
        find: Find, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
    ) -> LayerCall:
        need_batch(find, weight, bias, input, dimensions + 2)
        geometry = Geometry(*(tuple(each(value)) for value in (stride, padding, dilation)), groups)
        rule = TransposedConvolution(geometry, tuple(each(output_padding)))
        return LayerCall(rule, input, weight, bias, (find(weight), find(bias)), where.cast_as_autocast)

    return transposed_convolution


CALLS = {
    F.conv_transpose1d: _transposed(1),
    F.conv_transpose2d: _transposed(2),
    F.conv_transpose3d: _transposed(3),
}
