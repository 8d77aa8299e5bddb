"""Running the C++ compiler that the environment names, for a limited time."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    with _started(commands, temporary) as processes:
        for process in processes:
            try:
                _, errors = process.communicate(timeout=max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{process.args[0]} did not end within {LONGEST} seconds") from None
            if process.returncode:
                raise OSError(f"{process.args[0]}: {_problem(errors) or f'ended with {process.returncode}'}")


@contextmanager
def _started(commands: list[list[str]], temporary: Path) -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    try:
        for words in commands:
            processes.append(_start(words, temporary))
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:  # not waited for, so the number is still that of this group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()


def _start(words: list[str], temporary: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"TMPDIR": str(temporary), "LC_ALL": "C"},  # for messages in which "error" says so
        start_new_session=True,  # so that one signal reaches a wrapper and the compiler behind it
    )


def _problem(errors: str) -> str:
    """Return the line of a compiler's messages that tells most."""
    lines = errors.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "")
