"""Products of activations with a matrix on the right: x W and b + x W are linear layers of the weight W transposed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.methods.chooser import Chooser, Cut
from clars.norms.rules.linear import Linear
from clars.norms.rules.rule import Find, Gradients, LayerCall, Measure, Parameter, need_batch


@dataclass(frozen=True)
class Folded(Linear):
    """A linear layer of x [B, T, D] whose output has the positions of all examples in one dimension, [B * T, P]."""

    def forward(self, x, weight, bias):
        y, saved = super().forward(x, weight, bias)
        return y.flatten(0, 1), saved

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        return super().backward(gy.unflatten(0, x.shape[:2]), x, weight, saved, needs, measure)

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> None:
        return None


def matmul(find: Find, input, other) -> LayerCall:
    """Stand for torch.matmul and `@`: input [B, ..., D], other [D, P]."""
    need_batch(find, other, None, input, 2)
    if other.dim() != 2:
        _refuse(find, f"multiplies {tuple(input.shape)} by {tuple(other.shape)}", "(B, ..., D) by (D, P)", other)
    return _product(find, input, other, None)


def mm(find: Find, input, mat2) -> LayerCall:
    """Stand for torch.mm: input [B, D] or a view of the activations [B, ..., D] as that, mat2 [D, P]."""
    return matmul(find, input, mat2)


def addmm(find: Find, input, mat1, mat2, *, beta=1, alpha=1) -> LayerCall:
    """Stand for torch.addmm: input [P], mat1 [B, D] or a view of the activations [B, ..., D] as that, mat2 [D, P]."""
    if input.shape != mat2.shape[1:] or (beta, alpha) != (1, 1):
        shapes = " and ".join(str(tuple(each.shape)) for each in (input, mat1, mat2))
        _refuse(
            find, f"adds and multiplies {shapes}, by {beta} and {alpha}", "(P), (B, D) and (D, P), by 1", input, mat2
        )
    return _product(find, mat1, mat2, input)


def _product(find: Find, x: Tensor, matrix: Tensor, bias: Tensor | None) -> LayerCall:
    parameters = find(matrix), find(bias)
    rule, examples = Linear(), _examples(x, parameters[0] or parameters[1])
    if examples is not None:
        rule, x = Folded(), x.unflatten(0, (examples, -1))
    return LayerCall(rule, x, matrix.mT, bias, parameters, where.cast_as_autocast)


def _examples(x: Tensor, parameter: Parameter) -> int | None:
    """Return of how many examples x [B * T, D] has the positions; None where a row is an example's.

    What takes matrices alone gets the activations as a view that is one. They have the batch as their first dimension,
    and where an example follows the other in memory, the rows do as well.
    """
    whole = x._base
    if x.dim() != 2 or whole is None or not whole.dim() or parameter.sees(len(x)) or not parameter.sees(len(whole)):
        return None
    examples, elements = len(whole), whole.numel()
    alike = x.is_contiguous() and x.numel() == elements and x.dtype == whole.dtype and len(x) % examples == 0
    return examples if alike and (examples == 1 or whole.stride(0) * examples == elements) else None


def _refuse(find: Find, what: str, known: str, *tensors: Tensor) -> None:
    layers = [parameter.layer for parameter in map(find, tensors) if parameter is not None]
    raise UnsupportedLayerError(dict.fromkeys(layers, f"{what}; there is a rule for {known} only. Give it these."))


INPUTS = {torch.addmm: (1, "mat1"), Tensor.addmm: (1, "mat1")}
CALLS = {
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    torch.mm: mm,
    Tensor.mm: mm,
    torch.addmm: addmm,
    Tensor.addmm: addmm,
}
