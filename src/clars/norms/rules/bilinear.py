"""Bilinear layers: linear ones of the products of every number of one input with every number of another."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.measure import EVERYTHING, bias_contribution
from clars.norms.methods.method import slices
from clars.norms.rules import linear
from clars.norms.rules.rule import Contribution, Find, Gradients, LayerCall, Measure, Rule, need_batch
from clars.precision import wide


@dataclass(frozen=True)
class Bilinear(Rule):
    """y_p = a^T W_p b + c_p for a [B, ..., D] and b [B, ..., E] side by side in x [B, ..., D + E], and W [P, D, E].

    The products [B, ..., D * E] are formed on the way back, as many as fit into memory at a time.
    """

    def forward(self, x, weight, bias):
        return F.bilinear(*self._apart(x, weight), weight, bias), ()

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        for_input, for_weight, for_bias = needs
        positions = linear.operands(gy, x, weight).gy
        found = [self._piece(gy[piece], x[piece], weight, needs, measure) for piece in self._pieces(x, weight, measure)]
        gradients = [each.weight.gradient for each in found if for_weight]
        squares = [each.weight.squares for each in found if for_weight]
        return Gradients(
            torch.cat([each.input for each in found]) if for_input else None,
            Contribution(sum(gradients).to(weight.dtype), _joined(squares, measure)) if for_weight else Contribution(),
            bias_contribution(positions, measure) if for_bias else Contribution(),
        )

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        some_gy, some_x = gy[rows], x[rows]
        if which:
            return linear.Linear().contributions(some_gy, some_x, weight, saved, slice(None), group, 1)
        a, b = self._apart(some_x, weight)
        products = (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)
        found = linear.Linear().contributions(some_gy, products, weight.flatten(1), saved, slice(None), group, 0)
        return found.view(-1, *weight.shape)

    def leading(self, x: Tensor) -> int:
        return x.dim() - 1

    def _piece(self, gy: Tensor, x: Tensor, weight: Tensor, needs, measure: Measure) -> Gradients:
        """Return what some examples give to both inputs and to the weight, by the rule of linear layers."""
        a, b = self._apart(x, weight)
        products = (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)
        wanted, all_of_them = (*needs[:2], False), measure and measure._replace(rows=EVERYTHING)
        found = linear.Linear().backward(gy, products, weight.flatten(1), (), wanted, all_of_them)
        own = found.weight
        if needs[1]:
            own = Contribution(own.gradient.view(weight.shape).to(wide(weight.dtype)), own.squares)
        if not needs[0]:
            return Gradients(None, own, Contribution())
        of_products = found.input.unflatten(-1, weight.shape[1:])
        of_a, of_b = (of_products @ b.unsqueeze(-1)).squeeze(-1), (a.unsqueeze(-2) @ of_products).squeeze(-2)
        return Gradients(torch.cat((of_a, of_b), -1), own, Contribution())

    @staticmethod
    def _apart(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return x.split(tuple(weight.shape[1:]), -1)

    @staticmethod
    def _pieces(x: Tensor, weight: Tensor, measure: Measure) -> list[slice]:
        group = 1 if measure is None else min(measure.group, len(x))
        positions = x[0].numel() // x.shape[-1]
        each = 3 * group * positions * weight[0].numel() * x.element_size()
        return slices(len(x), each, (measure and measure.memory) or where.working_set(x.device.type), group)


def _joined(squares: list[Tensor], measure: Measure | None) -> Tensor | None:
    return None if measure is None else measure.of_groups(torch.cat(squares))


def bilinear(find: Find, input1, input2, weight, bias=None) -> LayerCall:
    """Stand for torch.nn.functional.bilinear: inputs [B, ..., D] and [B, ..., E], weight [P, D, E], bias [P]."""
    need_batch(find, weight, bias, input1, 2)
    if find(input2) is not None:
        raise UnsupportedLayerError({find(input2).layer: "is an input of bilinear, for which there is no rule."})
    x = torch.cat((input1, input2), -1)
    return LayerCall(Bilinear(), x, weight, bias, (find(weight), find(bias)), where.cast_to_widest)


INPUTS = {F.bilinear: (0, "input1")}
CALLS = {F.bilinear: bilinear}
