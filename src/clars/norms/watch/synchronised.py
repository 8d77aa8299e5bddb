"""Batch normalisation over the statistics of several processes, torch.nn.SyncBatchNorm.

torch computes it in one autograd function, which no rule can look into. While a tracker watches, that function
normalises only, and weight and bias are applied by a function that has a rule. Values and gradients are the same.
"""

import torch
from torch import Tensor
from torch.nn.modules import batchnorm
from torch.overrides import handle_torch_function


def scale_and_shift(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight_c * y_bc + bias_c for y [B, C, ...]."""
    if torch._C._len_torch_function_stack():
        return handle_torch_function(scale_and_shift, (y, weight, bias), y, weight, bias)
    shape = (-1, *[1] * (y.dim() - 2))
    return y * weight.view(shape) + bias.view(shape)


class Apart:
    """Stands in for torch's function `plain`, in the module that looks it up by its name."""

    def __init__(self, plain) -> None:
        self.plain = plain

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor, *others) -> Tensor:
        if not torch.is_grad_enabled() or not torch._C._len_torch_function_stack():  # nobody watches
            return self.plain.apply(x, weight, bias, *others)
        y = self.plain.apply(x, torch.ones_like(weight.detach()), torch.zeros_like(bias.detach()), *others)
        return scale_and_shift(y, weight, bias).to(y.dtype)


def take_apart() -> None:
    """Have torch.nn.SyncBatchNorm use `Apart`; modules that are not watched compute as before."""
    if not isinstance(batchnorm.sync_batch_norm, Apart):
        batchnorm.sync_batch_norm = Apart(batchnorm.sync_batch_norm)
