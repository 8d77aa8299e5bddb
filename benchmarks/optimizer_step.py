"""Cost of the optimizer's step alone, on ResNet-50's parameters.

    python benchmarks/optimizer_step.py

The optimizers take turns in one process, each with its own parameters and gradients; the median over the rounds counts.
LARS and CLARS differ in the denominator of the ratio only, and CLARS's is at hand when its step begins. Writes
optimizer_step.json and optimizer_step.md beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import timm
import timm.optim
import torch
from step_time import in_fresh_process, machine

import clars
from clars.lab.files import write_json, write_text

HERE = Path(__file__).parent
OPTIONS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
OPTIMIZERS = {
    "torch SGD(foreach=True)": lambda model: torch.optim.SGD(model.parameters(), foreach=True, **OPTIONS),
    "torch SGD, its default": lambda model: torch.optim.SGD(model.parameters(), **OPTIONS),
    "timm Lars": lambda model: timm.optim.Lars(model.parameters(), **OPTIONS),
    "clars.LARS": lambda model: clars.LARS(model, **OPTIONS),
}


def seconds(threads: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step by optimizer."""
    torch.set_num_threads(threads)
    optimizers = {}
    for name, make in OPTIMIZERS.items():
        model = timm.create_model("resnet50")
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers[name] = make(model)
    taken: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(rounds + 1):
        for name, optimizer in optimizers.items():
            began = time.perf_counter()
            optimizer.step()
            if turn:  # the first round makes the buffers
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def markdown(result: dict) -> str:
    """Return the table as Markdown."""
    first = next(iter(OPTIMIZERS))
    lines = [
        f"Milliseconds of an optimizer step on ResNet-50's 25.6 million parameters: the median of {result['rounds']} "
        f"interleaved rounds, and over {first}. Measured on {result['device']}. Regenerate with `{result['command']}`.",
        "",
        "| optimizer | " + " | ".join(f"{count} thread{'s' * (count != '1')}" for count in result["seconds"]) + " |",
        "|---|" + "---|" * len(result["seconds"]),
    ]
    for name in OPTIMIZERS:
        cells = (f"{1e3 * taken[name]:.1f} ({taken[name] / taken[first]:.2f})" for taken in result["seconds"].values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--measure", type=int, metavar="THREADS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(seconds(options.measure, options.rounds)))
        return
    taken = {
        str(count): in_fresh_process(__file__, "--measure", count, "--rounds", options.rounds)
        for count in options.threads
    }
    result = machine(torch.device("cpu"), "optimizer_step.py") | {"rounds": options.rounds, "seconds": taken}
    write_json(options.out / "optimizer_step.json", result)
    write_text(options.out / "optimizer_step.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
