"""Environments of their own for tests, of packages that are installed already: links to them, nothing is copied."""

import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def linked(folder, *wanted):
    """Make an environment in `folder` that has what the requirements name and need; return its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = Path(folder, "lib", version, "site-packages")
    for name in needed(wanted):
        found = distribution(name)
        for top in {path.parts[0] for path in found.files} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    return str(Path(folder, "bin", "python"))


def needed(wanted):
    """The names of packages that requirements ask for, and of what those require on this machine."""
    found, left = set(), [Requirement(text) for text in wanted]
    while left:
        requirement = left.pop()
        key = (requirement.name.lower(), frozenset(requirement.extras))
        if key not in found:
            found.add(key)
            for text in distribution(requirement.name).requires or ():
                other = Requirement(text)
                extras = requirement.extras or {""}
                if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras):
                    left.append(other)
    return {name for name, _ in found}
