"""What this machine has for training: cores, and GPUs of NVIDIA or, under ROCm, of AMD, which torch calls the same."""

import ctypes
import os
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


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # of AMD's driver
    return True
