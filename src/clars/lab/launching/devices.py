"""Which GPUs this machine has for training: NVIDIA's, and AMD's under ROCm, which torch calls by the same name."""

import ctypes
import sys
from pathlib import Path


def gpus() -> int:
    """Return how many GPUs torch can use here.

    Torch, which takes seconds to import, is asked only where it is loaded already or a driver is installed.
    """
    if "torch" not in sys.modules and not _driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # of AMD's driver
    return True
