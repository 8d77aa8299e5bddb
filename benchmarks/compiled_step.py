"""Cost of a compiled training step: CLARS over torch's SGD, both under torch.compile.

    python benchmarks/compiled_step.py

A step is that of step_time.py, with the network compiled by torch's default backend, on small images. The methods take
turns within one process, each with its own copy of the network, and the median over the rounds counts; so for several
fresh processes. The first steps, which compile, are told by themselves. Writes compiled_step.json and compiled_step.md
beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.progress import track
from step_time import KEEP_MEMORY, Step, in_fresh_process, machine, ratios

from clars.lab.files import write_json, write_text

MODELS = {"resnet50": 64, "mobilenetv2_100": 64, "vit_tiny_patch16_224": 224}
METHODS = ("sgd", "clars")
HERE = Path(__file__).parent


def measure(name: str, threads: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return by method the seconds of the first step, and the median of those after the second."""
    torch.set_num_threads(threads)
    steps = {method: Step(name, method, batch, MODELS[name], torch.device("cpu")) for method in METHODS}
    first = {}
    for method, step in steps.items():
        step.model = torch.compile(step.model)
        first[method] = step()
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, step in steps.items():
            second = step()
            if turn:  # the first round warms up
                taken[method].append(second)
    return {"first": first, "later": {method: statistics.median(values) for method, values in taken.items()}}


def markdown(result: dict) -> str:
    """Return the table as Markdown."""
    lines = [
        f"Time of a compiled training step with CLARS over one with torch's SGD, compiled alike, at batch "
        f"{result['batch']}: in each of {result['processes']} processes the median of {result['rounds']} interleaved "
        f"rounds, of these the median and the range; and the first step of the first process, which compiles. Measured "
        f"on {result['device']}, {result['cores']} cores.\n\nRegenerate with `{result['command']}`.\n",
        "| network | threads | SGD, s | CLARS | range | first step with SGD, s | with CLARS, s | GPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        found = ratios(row, "clars")
        sgd = statistics.median(taken["sgd"] for taken in row["seconds"])
        first = (f"{row['first'][method]:.0f}" for method in METHODS)
        lines.append(
            f"| {row['model']}, {row['pixels']} px | {row['threads']} | {sgd:.3f} | {statistics.median(found):.2f} | "
            f"{found[0]:.2f} to {found[-1]:.2f} | {' | '.join(first)} | not measured |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = ("--batch", options.batch, "--rounds", options.rounds)
    if options.measure:
        name, threads = options.measure
        print(json.dumps(measure(name, int(threads), options.batch, options.rounds)))
        return
    rows = []
    for name, threads in track([(name, threads) for name in options.models for threads in options.threads], "compiled"):
        with TemporaryDirectory() as cache:  # of inductor's: empty for the first process, and for the others not
            environment = KEEP_MEMORY | {"TORCHINDUCTOR_CACHE_DIR": cache}
            words = (__file__, *size, "--measure", name, threads)
            found = [in_fresh_process(*words, environment=environment) for _ in range(options.processes)]
        seconds, first = [each["later"] for each in found], found[0]["first"]
        rows.append({"model": name, "pixels": MODELS[name], "threads": threads, "seconds": seconds, "first": first})
    result = machine(torch.device("cpu"), "compiled_step.py") | {
        "batch": options.batch,
        "rounds": options.rounds,
        "processes": options.processes,
        "rows": rows,
    }
    write_json(options.out / "compiled_step.json", result)
    write_text(options.out / "compiled_step.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
