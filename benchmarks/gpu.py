"""All that a GPU has to tell about this version: what it computes, and what it takes.

    python benchmarks/gpu.py                                        (make gpu; one GPU, at most eight minutes)
    python benchmarks/gpu.py --device cpu --quick --out FOLDER      (the same code at toy sizes, on a processor)

Each part is a process of its own with a time limit; what it has found by then counts, and one that fails does not stop
the next. Writes gpu.json, gpu.md and gpu.png beside this file, or to the folder given by --out, after each part.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from gpu_parts.report import chart, markdown

HERE = Path(__file__).parent
SOURCES = HERE.parent / "src"
sys.path.insert(0, str(SOURCES))  # it need not be installed

from clars.lab.files import write_json, write_text  # noqa: E402

SLOWER = 4  # times the limits, where a processor tries the code out
LAST = 20  # lines of a part that failed


# Scripts of gpu_parts, and the seconds after which each is killed: with what is between them, eight minutes together.
# The first compiles the layers' functions in C++ where that has not been done.
LIMITS = {"doctor": 90.0, "checks": 100.0, "recipe": 55.0, "step": 175.0, "layers": 40.0}
STOPS = (signal.SIGTERM, signal.SIGHUP)  # beside Ctrl-C


def run(command: Sequence[str], into: Path, limit: float) -> dict:
    """Run a part with all processes that it starts; return how it ended and what it left in the file `into`.

    "problem" is None where it ended well, and otherwise what happened, with its last lines.
    """
    began, interrupted = time.monotonic(), False
    with (into.with_suffix(".log")).open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        except KeyboardInterrupt:
            code, interrupted = None, True
        finally:
            _kill(process)
        log.seek(0)
        last = "".join(log.readlines()[-LAST:])
    problem = None
    if code != 0:
        ending = f"ended with code {code}" if code is not None else f"was ended after {limit:g} s"
        ending = "was interrupted" if interrupted else ending
        problem = f"It {ending}. Its last lines:\n{last}"
    result = json.loads(into.read_text(encoding="utf-8")) if into.exists() else None
    seconds = round(time.monotonic() - began, 1)
    return {"seconds": seconds, "exit": code, "problem": problem, "interrupted": interrupted, "result": result}


def _kill(process: subprocess.Popen) -> None:
    """End what is left of a process and of all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def command_of(part: str, device: str, quick: bool, limit: float, into: Path) -> list[str]:
    line = [sys.executable, str(HERE / "gpu_parts" / f"{part}.py"), "--device", device]
    return [*line, "--limit", str(limit), "--into", str(into), *(["--quick"] if quick else [])]


def write(result: dict, out: Path) -> None:
    """Write all that is known by now; each file is whole or the one before."""
    write_json(out / "gpu.json", result)
    write_text(out / "gpu.md", markdown(result))
    chart(result, out / "gpu.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to try the code out")
    parser.add_argument("--parts", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "torch finds no GPU here, so nothing is measured and nothing is written. To try the code out on a "
            "processor: python benchmarks/gpu.py --device cpu --quick --out FOLDER",
            file=sys.stderr,
        )
        return 2
    if options.device == "cpu" and options.out == HERE:
        print("What a processor takes is not what a GPU does: name another folder by --out.", file=sys.stderr)
        return 2
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
    for number in STOPS:
        signal.signal(number, signal.default_int_handler)
    command = " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    result: dict = {"command": command, "device": options.device, "quick": options.quick, "parts": {}}
    with TemporaryDirectory() as folder:
        for part in options.parts:
            limit = LIMITS[part] * (1 if options.device == "cuda" else SLOWER)
            print(f"{part}, at most {limit:g} s", flush=True)
            into = Path(folder, f"{part}.json")
            found = run(command_of(part, options.device, options.quick, limit, into), into, limit)
            result["parts"][part] = found
            write(result, options.out)
            print(f"  {found['seconds']:g} s{': ' + found['problem'] if found['problem'] else ''}", flush=True)
            if found["interrupted"]:
                return 128 + signal.SIGINT
    print(markdown(result))
    return 1 if any(part["problem"] for part in result["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
