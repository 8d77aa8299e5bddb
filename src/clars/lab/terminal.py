"""What goes to the terminal: any text, of which each character is shown and none obeyed."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clars.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def prepare() -> None:
    """Make a process that talks to people ready for it.

    A character that the terminal, or a file in its place, has no code for becomes a question mark; our own warnings
    come without file and line, each text once.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    warnings.showwarning = _warnings_once()


def say(text: object) -> None:
    """Print a line of text."""
    print(printable(str(text)), flush=True)


def console(**options: object) -> "Console":
    """Return a rich console that takes brackets and colons in texts for what they are."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False, **options)


def plural(number: int, one: str, several: str = "") -> str:
    """Return a number of things in words: 1 seed, 2 seeds; `several` where that is not `one` with an s."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def cell(text: object, style: str = "") -> "Text":
    """Return text for rich, of a cell or a line."""
    from rich.text import Text

    return Text(printable(str(text)), style=style)


def _warnings_once() -> Callable:
    told = set()

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        ours = Path(filename).is_relative_to(Path(__file__).parents[1])
        text = str(message) if ours else warnings.formatwarning(message, category, filename, lineno, line).strip()
        if text not in told:
            print(f"warning: {printable(text)}", file=sys.stderr)
        told.add(text)

    return show
