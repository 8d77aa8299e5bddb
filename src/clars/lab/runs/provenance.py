"""Where a run's numbers come from: code, versions, device."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("clars", "torch", "accelerate", "timm", "datasets", "numpy", "deepspeed")


def provenance(recipe: Path, device: torch.device | str = "cpu") -> dict[str, object]:
    """Return the entries git, versions and device of a record.

    Args:
        recipe: the recipe's file; `git` describes the repository that holds it.
        device: the device the run computes on.
    """
    return {
        "git": git_state(recipe.resolve().parent),
        "versions": versions(),
        "device": device_name(torch.device(device)),
    }


def git_state(folder: Path) -> dict[str, object]:
    """Return the commit at `folder` and whether files differ from it; None for both outside of git."""
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    return {"commit": commit, "dirty": None if commit is None or changes is None else bool(changes)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that can change a run's numbers."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """Return the kind and the product name of a device, such as `cuda: NVIDIA H200`."""
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
