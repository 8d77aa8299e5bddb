"""Exit codes of the command lines, and how they pass through `accelerate launch`.

`accelerate launch` answers 1 whatever its script answered, so the script leaves its code in the file that
$CLARS_EXIT_FILE names, where that is set.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clars.errors import Fault, UserError, printable, shortened

FINISHED = 0
FAULT = 1
USER_ERROR = 2
DIVERGED = 3
INTERRUPTED = 130
FILE = "CLARS_EXIT_FILE"
LONGEST = 8_000  # characters of a message; a value that it repeats may be as long as the file it stood in

STOP = (signal.SIGINT, signal.SIGTERM)  # of a terminal, and of job schedulers


def guard(function: Callable[[], int | None]) -> int:
    """Call `function` and return its exit code; a mistake of the user becomes one message and the code 2.

    Mistakes are UserError, and OSError: files that are not there or cannot be written. Ctrl-C and SIGTERM give 130,
    another process that was lost 1.
    """
    with _stopping_once():
        try:
            return function() or FINISHED
        except UserError as error:
            _tell(f"error: {error}")
            return FAULT if isinstance(error, Fault) else USER_ERROR
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _tell(f"error: {place}{error.strerror or error}.")
            return USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED


def _tell(message: str) -> None:
    print(printable(shortened(message, LONGEST)), file=sys.stderr)


@contextmanager
def _stopping_once() -> Iterator[None]:
    """Let the first signal to stop end what runs; those after it find the end in hand and are ignored.

    A terminal and a launcher may send one each. Our own launcher hands its processes down with both ignored.
    """

    def stop(number: int, frame: object) -> None:
        ignore_stops()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def ignore_stops() -> None:
    """Be stopped no more: what runs is ending anyway, and what it writes at its end is to be whole."""
    for each in STOP:
        signal.signal(each, signal.SIG_IGN)


def gravest(codes: Iterable[int]) -> int:
    """Return the code that a whole of several ends with: a mistake or a fault before a stop, that before divergence."""
    order = (USER_ERROR, FAULT, INTERRUPTED, DIVERGED, FINISHED)
    return min(codes, key=lambda code: order.index(code) if code in order else 1)


def report(code: int) -> int:
    """Leave `code` for our own launcher, if that started this process, and return the code to exit with.

    A run that diverged did what it was asked: towards a launcher that has the code already it exits with 0, as
    launchers print a page about any other. Of several processes, the first that fails has the cause.
    """
    if FILE not in os.environ or code == FINISHED:
        return code
    with suppress(FileExistsError), Path(os.environ[FILE]).open("x", encoding="utf-8") as file:
        file.write(str(code))
    return FINISHED if code == DIVERGED else code


def reported(path: Path, otherwise: int) -> int:
    """Return the code that `report` left in `path`, or `otherwise` where the process ended without one."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return int(text) if text else otherwise
