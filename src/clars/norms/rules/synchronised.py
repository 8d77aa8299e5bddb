"""Batch normalisation over the statistics of several processes, torch.nn.SyncBatchNorm.

torch computes it in one autograd function, which no rule can look into. While a tracker watches, that function
normalises only, and weight and bias are applied by a function that has a rule. Values and gradients are the same.
"""

from weakref import finalize

import torch
from torch import Tensor
from torch.nn.modules import batchnorm
from torch.overrides import handle_torch_function

from clars.norms.rules.rule import Find


def scale_and_shift(y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight_c * y_bc + bias_c for y [B, C, ...]."""
    if torch._C._len_torch_function_stack():
        return handle_torch_function(scale_and_shift, (y, weight, bias), y, weight, bias)
    shape = (-1, *[1] * (y.dim() - 2))
    return y * weight.view(shape) + bias.view(shape)


def scaled_and_shifted(find: Find, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Scale and shift the channels of what `SyncBatchNorm` has normalised: y [B, C, ...], weight and bias [C]."""
    rows = find.expand(torch.Size(y.shape[:2]), [weight, bias])
    scale, shift = (row.view(*row.shape, *[1] * (y.dim() - 2)) for row in rows)
    return y * scale + shift


class Apart:
    """Stands in for torch's function `plain`, in the module that looks it up by its name."""

    def __init__(self, plain) -> None:
        self.plain = plain

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor, *others) -> Tensor:
        if not torch.is_grad_enabled() or not torch._C._len_torch_function_stack():  # nobody watches
            return self.plain.apply(x, weight, bias, *others)
        y = self.plain.apply(x, torch.ones_like(weight.detach()), torch.zeros_like(bias.detach()), *others)
        return scale_and_shift(y, weight, bias).to(y.dtype)


class Patch:
    """Has torch.nn.SyncBatchNorm use `Apart` as long as somebody needs it, and torch's own function afterwards.

    Modules that are not watched compute as before in the meantime.
    """

    def __init__(self) -> None:
        self._holders: dict[int, finalize] = {}

    def hold(self, holder: object) -> None:
        """Put the patch in place until `holder` releases it, or is gone."""
        if not isinstance(batchnorm.sync_batch_norm, Apart):
            batchnorm.sync_batch_norm = Apart(batchnorm.sync_batch_norm)
        end = finalize(holder, self._drop, id(holder))
        end.atexit = False
        self._holders[id(holder)] = end

    def release(self, holder: object) -> None:
        """Take it away where nobody else holds it."""
        if end := self._holders.get(id(holder)):
            end()

    def _drop(self, number: int) -> None:
        self._holders.pop(number, None)
        if not self._holders and isinstance(batchnorm.sync_batch_norm, Apart):
            batchnorm.sync_batch_norm = batchnorm.sync_batch_norm.plain


PATCH = Patch()

CALLS = {scale_and_shift: scaled_and_shifted}
