"""Linear layers with any number of positions between the batch and the feature dimension."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from clars import native
from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.chooser import Chooser, Cut
from clars.norms.methods.groups import summed
from clars.norms.methods.measure import bias_contribution, weight_contribution
from clars.norms.methods.operands import LinearOperands
from clars.norms.methods.products import each_product
from clars.norms.methods.sizes import Sizes
from clars.norms.rules.rule import Contribution, Find, Gradients, LayerCall, Measure, Rule, need_batch
from clars.precision import wide


@dataclass(frozen=True)
class Linear(Rule):
    """y = x W^T + b for x [B, ..., D], W [P, D], b [P]."""

    def forward(self, x, weight, bias):
        return F.linear(x, weight, bias), ()

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        for_input, for_weight, for_bias = needs
        call = operands(gy, x, weight)
        return Gradients(
            gy @ weight if for_input else None,
            weight_contribution(call, measure) if for_weight else Contribution(),
            bias_contribution(call.gy, measure) if for_bias else Contribution(),
        )

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        call = operands(gy[rows], x[rows], weight)
        return summed(call.gy.sum(2, dtype=wide(gy.dtype)), group) if which else each_product(call, group)

    def leading(self, x: Tensor) -> int:
        return x.dim() - 1

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> native.NativeLayer | None:
        if where.accelerated(x):
            return chooser.accelerated_layer("AcceleratedLinear", (), x, weight, operands, cut)
        return chooser.native_layer("Linear", (), x, weight, self._foreseen, cut)

    def _foreseen(self, x: Tensor, weight: Tensor) -> Sizes:
        y, _ = self.forward(x.to("meta"), weight.to("meta"), None)
        return operands(y, x, weight).sizes()


def operands(gy: Tensor, x: Tensor, weight: Tensor) -> LinearOperands:
    """Return the tensors of a call, gy [B, ..., P] and x [B, ..., D], as the methods take them."""
    return LinearOperands(_by_feature(gy), _by_feature(x), weight)


def _by_feature(x: Tensor) -> Tensor:
    """Return x [B, ..., N] as [B, N, T], the form of convolutions."""
    return x.reshape(len(x), -1, x.shape[-1]).mT


def linear(find: Find, input, weight, bias=None) -> LayerCall:
    """Stand for torch.nn.functional.linear: input [B, ..., D], weight [P, D], bias [P]."""
    need_batch(find, weight, bias, input, 2)
    parameters = find(weight), find(bias)
    if weight.dim() != 2 or (bias is not None and bias.requires_grad and bias.shape != weight.shape[:1]):
        shapes = " and ".join(str(tuple(value.shape)) for value in (weight, bias) if value is not None)
        problem = f"has weight and bias of shapes {shapes}; there is a rule for (P, D) and (P,) only. Give them these."
        raise UnsupportedLayerError({(parameters[0] or parameters[1]).layer: problem})
    return LayerCall(Linear(), input, weight, bias, parameters, where.cast_as_autocast)


CALLS = {F.linear: linear}
