"""How far a whole of many runs is: counted, with the time it took and the time that is left."""

import re
import threading
import time

from clars.errors import printable
from clars.lab import terminal

_HEADING = re.compile(r"\[\d+/\d+[^]]*\] ")


class Count:
    """Counts runs that end; the estimate of what is left takes them to be equally long.

    Args:
        runs: runs to come.
        done: runs of the same whole that are over already.
    """

    def __init__(self, runs: int, done: int = 0) -> None:
        self.total, self.done = done + runs, done
        self._before, self._began = done, time.monotonic()

    def next(self) -> str:
        """Count one more; return the heading of a line about it."""
        self.done += 1
        elapsed = time.monotonic() - self._began
        left = elapsed / (self.done - self._before) * (self.total - self.done)
        ahead = f", {clock(left)} left" if self.done < self.total else ""
        return f"[{self.done}/{self.total}, {clock(elapsed)}{ahead}]"


class Merged:
    """Tells what several launches print, line by line, as of one: runs counted over all, each message once."""

    def __init__(self, count: Count) -> None:
        self.count, self.console = count, terminal.console(stderr=True)
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, line: str) -> None:
        """Print a line of one of the launches."""
        with self._lock:
            if heading := _HEADING.match(line):
                line = f"{self.count.next()} {line[heading.end() :]}"
            if line.strip() and line not in self._told:
                self.console.print(printable(line.expandtabs()), soft_wrap=True)
            self._told.add(line)


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
