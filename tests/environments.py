"""Environments of their own for tests, of packages that are installed already: links to them, nothing is copied."""

import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def linked(folder, *names):
    """Make an environment in `folder` that has these packages and what they need; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = Path(folder, "lib", version, "site-packages")
    for name in needed(names):
        found = distribution(name)
        for top in {path.parts[0] for path in found.files} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    return str(Path(folder, "bin", "python"))


def needed(names):
    """The packages, and those that they require on this machine."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        if name.lower() in found:
            continue
        found.add(name.lower())
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found
