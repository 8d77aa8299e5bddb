"""Products of activations with a matrix on the right: x W and b + x W are linear layers of the weight W transposed."""

import torch
from torch import Tensor

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.rules.linear import Linear
from clars.norms.rules.rule import Find, LayerCall, need_batch


def matmul(find: Find, input, other) -> LayerCall:
    """Stand for torch.matmul and `@`: input [B, ..., D], other [D, P]."""
    need_batch(find, other, None, input, 2)
    if other.dim() != 2:
        _refuse(find, f"multiplies {tuple(input.shape)} by {tuple(other.shape)}", "(B, ..., D) by (D, P)", other)
    return _product(find, input, other, None)


def mm(find: Find, input, mat2) -> LayerCall:
    """Stand for torch.mm: input [B, D] or [B * T, D], mat2 [D, P]."""
    return matmul(find, input, mat2)


def addmm(find: Find, input, mat1, mat2, *, beta=1, alpha=1) -> LayerCall:
    """Stand for torch.addmm: input [P], mat1 [B, D] or [B * T, D], mat2 [D, P]."""
    if input.shape != mat2.shape[1:] or (beta, alpha) != (1, 1):
        shapes = " and ".join(str(tuple(each.shape)) for each in (input, mat1, mat2))
        _refuse(
            find, f"adds and multiplies {shapes}, by {beta} and {alpha}", "(P), (B, D) and (D, P), by 1", input, mat2
        )
    return _product(find, mat1, mat2, input)


def _product(find: Find, x: Tensor, matrix: Tensor, bias: Tensor | None) -> LayerCall:
    return LayerCall(Linear(), x, matrix.mT, bias, (find(matrix), find(bias)), where.cast_as_autocast)


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
