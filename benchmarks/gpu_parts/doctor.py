"""What the machine has: `clars doctor`, the device, its driver, and versions."""

import platform
import subprocess

import torch
from part import Part

from clars.lab import doctor
from clars.lab.runs.provenance import device_name, versions

QUERY = ("driver_version", "memory.total", "clocks.max.sm", "power.limit")


def driver() -> dict[str, str]:
    """Return what NVIDIA's tool tells of the first device; nothing where it is not installed."""
    line = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(QUERY, values)) if done.returncode == 0 and len(values) == len(QUERY) else {}


def triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def main() -> None:
    part = Part(__doc__)
    part.result = {
        "device": device_name(torch.device(part.device)),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton(),
        "capability": list(torch.cuda.get_device_capability()) if part.on_gpu else None,
        "versions": versions(),
        "system": platform.platform(),
        "cores": torch.multiprocessing.cpu_count(),
    }
    part.write()
    # It compiles the layers' functions in C++ where that has not been done, so that no later part has to.
    part.attempt(part.result, "doctor", lambda: [[each.subject, each.ok, each.text] for each in doctor.machine()])


if __name__ == "__main__":
    main()
