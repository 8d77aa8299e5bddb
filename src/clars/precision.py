"""In which precision norms are accumulated."""

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which norms of tensors of `dtype` are accumulated: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32
