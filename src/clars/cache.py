"""Where what is made once and used again is kept: the user's cache folder."""

import os
from pathlib import Path

VARIABLE = "CLARS_CACHE"


def folder(name: str) -> Path:
    """Return the folder for one kind of content; the variable CLARS_CACHE moves the whole elsewhere."""
    home = os.environ.get(VARIABLE)
    if home is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clars")
    return Path(home, name)
