"""Where what is made once and used again is kept: the user's cache folder."""

import os
from pathlib import Path

from clars.errors import UserError

VARIABLE = "CLARS_CACHE"


def folder(name: str) -> Path:
    """Return the folder for one kind of content; the variable CLARS_CACHE moves the whole elsewhere.

    A relative XDG_CACHE_HOME is left aside, as the XDG Base Directory Specification demands.

    Raises:
        UserError: there is no home folder, and CLARS_CACHE names none that does without.
    """
    shared = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if chosen := os.environ.get(VARIABLE):
            return Path(chosen).expanduser() / name
        if os.path.isabs(shared):
            return Path(shared, "clars", name)
        return Path.home() / ".cache" / "clars" / name
    except RuntimeError:  # no HOME, and a user that the system does not know
        raise UserError(f"There is no home folder to keep {name} in. Set {VARIABLE} to a folder.") from None
