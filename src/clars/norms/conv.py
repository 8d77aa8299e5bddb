"""Convolutions of one to three dimensions: stride, dilation, padding, groups, depthwise."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.norms.product import add_examples, bias_contribution, gram_squares
from clars.norms.rule import Contribution, Gradients
from clars.norms.strategy import chunks, prefers_gram, squared_norms


@dataclass(frozen=True)
class Conv:
    """A convolution of x [B, C, *size] with weight [P, C / groups, *kernel] and zero padding."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x, weight, bias):
        none = (0,) * len(self.stride)
        y = torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, none, self.groups)
        return y, ()

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs) -> Gradients:
        for_input, for_weight, for_bias = needs
        return Gradients(
            self._gradient(gy, x, weight, self.groups, wrt_input=True) if for_input else None,
            self._weight_contribution(gy, x, weight) if for_weight else Contribution(),
            bias_contribution(gy, tuple(range(2, gy.dim()))) if for_bias else Contribution(),
        )

    def _gradient(self, gy: Tensor, x: Tensor, weight: Tensor, groups: int, *, wrt_input: bool) -> Tensor:
        mask = (wrt_input, not wrt_input, False)
        none = (0,) * len(self.stride)
        both = torch.ops.aten.convolution_backward(
            gy, x, weight, None, self.stride, self.padding, self.dilation, False, none, groups, mask
        )
        return both[0] if wrt_input else both[1]

    def _weight_contribution(self, gy: Tensor, x: Tensor, weight: Tensor) -> Contribution:
        positions, inputs, outputs = prod(gy.shape[2:]), prod(weight.shape[1:]), weight.shape[0]
        if self.groups == 1 and len(self.stride) == 2 and prefers_gram(positions, inputs, outputs):
            return self._by_gram(gy, x, weight)
        gradient, squares = None, []
        per_example = gy.element_size() * (gy[0].numel() + x[0].numel() + weight.numel())
        for piece in chunks(len(x), per_example, gy.device):
            products = self._products(gy[piece], x[piece], weight)
            squares.append(squared_norms(products))
            gradient = add_examples(gradient, products)
        return Contribution(gradient.to(weight.dtype), torch.cat(squares))

    def _products(self, gy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Return each example's weight gradient [b, P, C / groups, *kernel], by one call.

        A batch of b examples is one example with b times the groups: each example's channels meet only its own
        output gradient.
        """
        examples = len(x)
        if examples == 1:
            return self._gradient(gy, x, weight, self.groups, wrt_input=False).unsqueeze(0)
        shape_only = weight.new_empty(()).expand(examples * len(weight), *weight.shape[1:])
        stacked = self._gradient(
            gy.reshape(1, -1, *gy.shape[2:]),
            x.reshape(1, -1, *x.shape[2:]),
            shape_only,
            examples * self.groups,
            wrt_input=False,
        )
        return stacked.view(examples, *weight.shape)

    def _by_gram(self, gy: Tensor, x: Tensor, weight: Tensor) -> Contribution:
        gradient = self._gradient(gy, x, weight, self.groups, wrt_input=False)
        squares = []
        positions, inputs = prod(gy.shape[2:]), prod(weight.shape[1:])
        per_example = gy.element_size() * positions * (inputs + len(weight))
        for piece in chunks(len(x), per_example, gy.device):
            columns = F.unfold(x[piece], weight.shape[2:], self.dilation, self.padding, self.stride)
            squares.append(gram_squares(gy[piece].flatten(2).transpose(1, 2), columns.transpose(1, 2)))
        return Contribution(gradient, torch.cat(squares))


def resolve_padding(
    x: Tensor, kernel: tuple[int, ...], padding: str | tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn 'valid' and 'same' into numbers; where 'same' is uneven, pad x by the excess on the far side first."""
    if padding == "valid":
        return x, (0,) * len(kernel)
    if padding != "same":
        return x, padding
    total = [step * (size - 1) for step, size in zip(dilation, kernel)]
    excess = [amount % 2 for amount in total]
    if any(excess):
        x = F.pad(x, [side for amount in reversed(excess) for side in (0, amount)])
    return x, tuple(amount // 2 for amount in total)
