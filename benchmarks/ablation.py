"""What each thing that is there for speed alone brings: a training step with it and without.

    python benchmarks/ablation.py

Two things are (see `Shortcuts` in src/clars/norms/watch/backward_pass.py): calls of the step before are recognised by
their arguments, and modules of torch that make them need not run. Steps with each and without take turns within one
process, each with its own copy of the network; the median over the rounds counts, and of several fresh processes the
median and range. Writes ablation.json and ablation.md beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from rich.progress import track
from step_time import HERE, MODELS, Step, in_fresh_process, machine

from clars.lab.files import write_json, write_text

BATCHES = {32: 64, 224: 8}  # examples, by the pixels of an image
WITHOUT = {"repeated calls": "repeated_calls", "known modules": "known_modules"}


def seconds(name: str, pixels: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step with everything, and without each; they take turns."""
    steps = {}
    for left_out in ("", *WITHOUT):
        step = Step(name, "clars", BATCHES[pixels], pixels, torch.device("cpu"))
        if left_out:
            setattr(step.optimizer.norms.shortcuts, WITHOUT[left_out], False)
        steps[left_out] = step
    taken: dict[str, list[float]] = {left_out: [] for left_out in steps}
    for turn in range(rounds + 2):
        for left_out, step in steps.items():
            second = step()
            if turn > 1:  # the first rounds warm up, and meet each call for the first time
                taken[left_out].append(second)
    return {left_out: statistics.median(values) for left_out, values in taken.items()}


def markdown(result: dict) -> str:
    """Return the table of a result as Markdown."""
    rows = [
        "| network | pixels | batch | step, s | " + " | ".join(f"without {name} | range" for name in WITHOUT) + " |"
    ]
    rows.append("|---" * (4 + 2 * len(WITHOUT)) + "|")
    for row in result["rows"]:
        cells = []
        for name in WITHOUT:
            each = sorted(taken[name] / taken[""] for taken in row["seconds"])
            cells += [f"{statistics.median(each):.3f}", f"{each[0]:.3f} to {each[-1]:.3f}"]
        step = statistics.median(taken[""] for taken in row["seconds"])
        rows.append(f"| {row['model']} | {row['pixels']} | {row['batch']} | {step:.3f} | " + " | ".join(cells) + " |")
    head = (
        f"Time of a training step of CLARS without what is there for speed alone, over that with everything, on one "
        f"thread: of {result['processes']} processes, each with the medians of {result['rounds']} interleaved rounds, "
        f"the median and the range. Measured on {result['device']}. Regenerate with `{result['command']}`.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--time", nargs=2, metavar=("MODEL", "PIXELS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        torch.set_num_threads(1)
        print(json.dumps(seconds(options.time[0], int(options.time[1]), options.rounds)))
        return
    rows = []
    cases = [(name, pixels) for name in options.models for pixels in BATCHES]
    for name, pixels in track(cases, "ablation"):
        words = ("--rounds", options.rounds, "--time", name, pixels)
        taken = [in_fresh_process(__file__, *words) for _ in range(options.processes)]
        rows.append({"model": name, "pixels": pixels, "batch": BATCHES[pixels], "seconds": taken})
    result = machine(torch.device("cpu"), "ablation.py") | {
        "rounds": options.rounds,
        "processes": options.processes,
        "rows": rows,
    }
    write_json(options.out / "ablation.json", result)
    write_text(options.out / "ablation.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
