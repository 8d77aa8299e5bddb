"""Cost of a step with CLARS on networks whose convolutions are in groups of channels.

    python benchmarks/grouped.py

As step_time.py, whose steps these are: SGD, CLARS, and CLARS without the method for such convolutions (`tiled`, see
src/clars/norms/methods/tiled.py) take turns within one process, each with its own copy of the network; the median over
the rounds of their ratios counts, and of several fresh processes the median. Writes grouped.json and
grouped.md beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
from pathlib import Path

import step_time
import torch
from rich.progress import track

from clars.lab.files import write_json, write_text
from clars.norms.methods import METHODS

PIXELS = {"regnetx_004": 160, "regnety_004": 160, "resnext50_32x4d": 128, "shufflenet_v2_x1_0": 160}
WITH, WITHOUT = "clars", "without"
OWN = "tiled"  # the method that is left out


def ratios(name: str, batch: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step of SGD, and the median ratios to it of CLARS, with the method and without."""
    steps = {way: step_time.Step(name, way, batch, PIXELS[name], torch.device("cpu")) for way in ("sgd", WITH, WITHOUT)}
    taken: dict[str, list[float]] = {way: [] for way in steps}
    every = list(METHODS)
    for turn in range(rounds + 2):
        for way, step in steps.items():
            METHODS[:] = [method for method in every if way != WITHOUT or method.name != OWN]
            second = step()
            if turn > 1:  # the first rounds warm up, and choose each layer's method
                taken[way].append(second)
    over = {way: statistics.median(a / b for a, b in zip(taken[way], taken["sgd"])) for way in (WITH, WITHOUT)}
    return {"sgd": statistics.median(taken["sgd"])} | over


def markdown(result: dict) -> str:
    """Return the table of a result as Markdown."""
    rows = [
        f"| network | batch | pixels | threads | SGD, s | CLARS, over SGD | ablation: without *{OWN}* |",
        "|---" * 7 + "|",
    ]
    for row in result["rows"]:
        sgd, *over = (statistics.median(taken[way] for taken in row["ratios"]) for way in ("sgd", WITH, WITHOUT))
        values = " | ".join(f"{value:.2f}" for value in (sgd, *over))
        rows.append(f"| {row['model']} | {result['batch']} | {row['pixels']} | {row['threads']} | {values} |")
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Time of a training step of CLARS over that with torch's SGD, on networks whose convolutions are in groups of "
        f"channels: in each process the median of {result['rounds']} interleaved rounds, of {result['processes']} "
        f"processes the median. The ablation leaves out the method *{OWN}*. Measured on "
        f"{result['device']}, {result['cores']} cores. GPU: not measured. {made}.\n\n"
        f"Regenerate with `{result['command']}`.\n\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=PIXELS, default=list(PIXELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=step_time.HERE)
    parser.add_argument("--time", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        name, threads = options.time
        torch.set_num_threads(int(threads))
        print(json.dumps(ratios(name, options.batch, options.rounds)))
        return
    size = ("--batch", options.batch, "--rounds", options.rounds)
    rows = []
    for name, threads in track([(name, threads) for name in options.models for threads in options.threads], "time"):
        words = (*size, "--time", name, threads)
        taken = [step_time.in_fresh_process(__file__, *words) for _ in range(options.processes)]
        rows.append({"model": name, "pixels": PIXELS[name], "threads": threads, "ratios": taken})
    options_used = {"batch": options.batch, "rounds": options.rounds, "processes": options.processes}
    result = step_time.machine(torch.device("cpu"), "grouped.py") | options_used | {"rows": rows}
    write_json(options.out / "grouped.json", result)
    write_text(options.out / "grouped.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
