"""How long methods took, for calls of which sizes: what accelerators took is kept for later processes."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from clars.cache import folder
from clars.errors import UserError, printable
from clars.native import triton, where

IMPOSSIBLE = 1e9  # seconds
LONGEST_WAIT = 10  # seconds, for another process that writes


class Timings:
    """What was timed so far: by this process, or by an earlier one with the same device and the same versions.

    Args:
        kept: whether to keep what accelerators take.
    """

    def __init__(self, kept: bool = False) -> None:
        self.kept = kept
        self._seconds: dict[str, dict[str, float]] = {}
        self._read: set[Path] = set()

    def seconds(self, key: tuple, device: str, works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Return the seconds of each work by name; empty where they are not known and nothing can be timed now.

        Args:
            key: what they depend on beside the device; its text tells it from others.
            device: the type of the device.
            works: to be timed.
        """
        name, file = repr(key), self._file(device)
        if file is not None and file not in self._read:
            self._read.add(file)
            self._seconds = _content(file) | self._seconds
        known = self._seconds.get(name, {})
        if not works.keys() <= known.keys():
            if not where.can_be_timed(device):
                return {}
            self._seconds[name] = _taken(works, device)
            if file is not None and IMPOSSIBLE not in self._seconds[name].values():
                _add(file, {name: self._seconds[name]})
        return {name: seconds for name, seconds in self._seconds[name].items() if name in works}

    def _file(self, device: str) -> Path | None:
        """Return where the seconds of a device are kept; None where they are not."""
        if not self.kept or where.on_processor(device):
            return None
        with suppress(UserError):  # there is no cache folder
            return folder("timings") / f"{_slug(where.name(device), *_versions())}.json"
        return None


def _taken(works: Mapping[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Return the seconds of each work, IMPOSSIBLE for one that fails here, such as for want of memory.

    Raises:
        Exception: the last one's, if all fail.
    """
    taken: dict[str, float] = {}
    for name, work in works.items():
        try:
            taken[name] = where.seconds(work, device)
        except Exception as error:
            taken[name] = IMPOSSIBLE
            if len(taken) == len(works) and set(taken.values()) == {IMPOSSIBLE}:
                raise
            warnings.warn(
                f"The method {name!r} for norms cannot run here and is left out: {printable(str(error))[:300]}",
                stacklevel=2,
            )
    return taken


@cache
def _versions() -> list[str]:
    """Return what the seconds depend on beside the device: torch, Triton, this package, and its kernels' code."""
    code = b"".join(path.read_bytes() for path in sorted(Path(triton.__path__[0]).glob("*.py")))
    found = [torch.__version__, hashlib.sha256(code).hexdigest()[:8]]
    for package in ("triton", "clars"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found


def _slug(*words: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".+" else "-" for letter in "_".join(words))


def _content(file: Path) -> dict[str, dict[str, float]]:
    """Return what a file holds; nothing where it is not there, or not as it was written."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        found = {str(key): {str(name): float(value) for name, value in each.items()} for key, each in read.items()}
        return {key: each for key, each in found.items() if all(0 < value < inf for value in each.values())}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _add(file: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    """Add to a file what was found, whole or not at all; a disk that takes nothing costs the next process its time."""
    with suppress(OSError, NotImplementedError, Timeout):  # file systems without locks among them
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock"), timeout=LONGEST_WAIT):
            whole = json.dumps(_content(file) | found, indent=1)
            with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as made:
                made.write(whole)
            os.replace(made.name, file)


TIMINGS = Timings(kept=True)
