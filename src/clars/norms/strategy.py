"""Which exact method forms the per-example norms of a matrix-shaped weight, and in pieces of what size.

A weight gradient is a sum over examples of products of an output gradient (P outputs at T positions) and an input
(D inputs at T positions). Two exact methods are used:

- product: form each example's P x D product, take its norm, add it to the gradient. The products are the weight
  gradient's own arithmetic, so nothing is computed twice; P x D numbers per example pass through the cache.
- gram: ||G^T X||^2 = sum of the elements of (X X^T) * (G G^T), T^2 (D + P) operations beside the ordinary gradient.
  It wins where there are few positions and many weights (the last stages of a residual network).
"""

from math import ceil

import torch

# Bytes of inputs, output gradients and products handled at once: small enough for a processor's cache, large enough
# to keep an accelerator busy. Set it lower to bound the transient memory, higher to launch fewer kernels.
WORKING_SET = {"cpu": 3 * 2**20, "cuda": 256 * 2**20}

# Measured on processors: the Gram form is cheaper as long as it adds no more than this share of the weight gradient's
# operations, since convolutions of few positions are slow when each example is one of their groups.
GRAM_SHARE = 0.3


def prefers_gram(positions: int, inputs: int, outputs: int) -> bool:
    """Tell whether the Gram form is cheaper than the products for T positions, D inputs and P outputs."""
    return positions * (inputs + outputs) < GRAM_SHARE * inputs * outputs


def chunks(examples: int, bytes_per_example: int, device: torch.device) -> list[slice]:
    """Cut `examples` into consecutive slices of about equal length whose working set stays within the bound."""
    bound = WORKING_SET.get(device.type, WORKING_SET["cpu"])
    most = min(examples, max(1, bound // max(1, bytes_per_example)))
    size = ceil(examples / ceil(examples / most))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which norms of tensors of `dtype` are accumulated: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def squared_norms(tensor: torch.Tensor) -> torch.Tensor:
    """Return the squared 2-norm of each example of `tensor` [B, ...] as [B], accumulated in float32 at least."""
    flat = tensor.flatten(1)
    return torch.linalg.vector_norm(flat, dim=1, dtype=wide(tensor.dtype)).square()
