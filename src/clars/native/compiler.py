"""Running the C++ compiler that the environment names, for a limited time."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

SHORT = 0.05  # seconds between looks at what runs
LONGEST = 900  # seconds for all; a minute or two on two cores is usual, and several where a machine is slow and shared
VARIABLE = "CXX"


def command() -> list[str]:
    """Return the compiler as words of a command: that of CXX, which may be `ccache g++`, else g++.

    Raises:
        OSError: there is none of that name.
    """
    named = os.environ.get(VARIABLE, "").strip() or "g++"
    try:
        program, *options = shlex.split(named)
    except ValueError as error:
        raise OSError(f"{VARIABLE}={named!r} is no command: {error}") from None
    if not (found := shutil.which(program)):
        raise FileNotFoundError(f"no C++ compiler {program!r}: install g++, or name one by {VARIABLE}")
    return [found, *options]


def run(commands: list[list[str]], temporary: Path) -> None:
    """Run commands side by side, whose own temporary files go into a folder.

    Whatever happens, none of them, nor what they started, goes on afterwards.

    Raises:
        OSError: one fails, or they take longer than LONGEST seconds.
    """
    end = time.monotonic() + LONGEST
    with _started(commands, temporary) as running:
        while running:
            for process, errors in list(running):
                if process.poll() is not None:
                    running.remove((process, errors))
                    _refuse_failed(process, errors)
            if running and time.monotonic() > end:
                raise TimeoutError(f"{running[0][0].args[0]} did not end within {LONGEST} seconds")
            time.sleep(SHORT)


def _refuse_failed(process: subprocess.Popen, errors: IO[str]) -> None:
    if process.returncode:
        errors.seek(0)
        raise OSError(f"{process.args[0]}: {_problem(errors.read()) or f'ended with {process.returncode}'}")


@contextmanager
def _started(commands: list[list[str]], temporary: Path) -> Iterator[list[tuple[subprocess.Popen, IO[str]]]]:
    """Start commands, each with a file for its messages; end those that are left at the end."""
    started: list[tuple[subprocess.Popen, IO[str]]] = []
    with ExitStack() as files:
        try:
            for words in commands:
                errors = files.enter_context(tempfile.TemporaryFile("w+", dir=temporary, errors="replace"))
                started.append((_start(words, temporary, errors), errors))
            yield list(started)
        finally:
            for process, _ in started:
                if process.returncode is None:  # not waited for, so the number is still that of this group
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _start(words: list[str], temporary: Path, errors: IO[str]) -> subprocess.Popen:
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=os.environ | {"TMPDIR": str(temporary), "LC_ALL": "C"},  # for messages in which "error" says so
        start_new_session=True,  # so that one signal reaches a wrapper and the compiler behind it
    )


def _problem(errors: str) -> str:
    """Return the line of a compiler's messages that tells most."""
    lines = errors.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "")
