"""What the parts of gpu.py share: their command line, and a result that is on disk after each piece of it."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from clars.lab.files import write_json

ROOT = Path(__file__).parents[2]


class Part:
    """One part of the measurement, in a process of its own that may be killed at any time.

    Attributes:
        device: cuda, or cpu to try the code out.
        quick: toy sizes.
        result: what was found so far; `write` puts it on disk.
    """

    def __init__(self, description: str) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
        parser.add_argument("--quick", action="store_true", help="toy sizes")
        parser.add_argument("--limit", type=float, default=600.0, help="seconds after which the process is killed")
        parser.add_argument("--into", type=Path, required=True, help="a JSON file")
        options = parser.parse_args()
        self.device, self.quick, self._into = options.device, options.quick, options.into
        self._end = time.monotonic() + options.limit
        self.result: dict = {}

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def write(self) -> None:
        write_json(self._into, self.result)

    def attempt(self, kept: dict, name: str, work: Callable[[], object]) -> None:
        """Keep under `name` what some work returns, or {"problem": ...}; a mistake in one does not end the others."""
        try:
            kept[name] = work()
        except Exception as error:  # whatever it is, it is what is to be told
            kept[name] = {"problem": f"{type(error).__name__}: {str(error).strip()[:500]}"}
        self.write()
