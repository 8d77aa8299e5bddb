"""Exit codes of the command lines, and how they pass through `accelerate launch`.

`accelerate launch` answers 1 whatever its script answered, so the script leaves its code in the file that
$CLARS_EXIT_FILE names, where that is set.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from clars.errors import UserError

FINISHED = 0
USER_ERROR = 2
DIVERGED = 3
INTERRUPTED = 130
FILE = "CLARS_EXIT_FILE"


def guard(function: Callable[[], int | None]) -> int:
    """Call `function` and return its exit code; a mistake of the user becomes one message and the code 2.

    Mistakes are UserError, and OSError: files that are not there or cannot be written. Ctrl-C gives 130.
    """
    if FILE in os.environ:
        # Our own launcher ignores Ctrl-C while it waits, and processes inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function() or FINISHED
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return USER_ERROR


def report(code: int) -> int:
    """Leave `code` for our own launcher, if that started this process, and return the code to exit with.

    A run that diverged did what it was asked: towards a launcher that has the code already it exits with 0, as
    launchers print a page about any other.
    """
    if FILE not in os.environ:
        return code
    Path(os.environ[FILE]).write_text(str(code), encoding="utf-8")
    return FINISHED if code == DIVERGED else code


def reported(path: Path, otherwise: int) -> int:
    """Return the code that `report` left in `path`, or `otherwise` where the process ended without one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return int(text) if text else otherwise
