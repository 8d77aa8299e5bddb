"""How the cost of CLARS over SGD changes with the batch and with the image size.

    python benchmarks/growth.py

The ratio of a training step's time, as in step_time.py, over batches of 8 to 512 at 32 pixels and over 32 to 224 pixels
at batch 8. Writes growth.json, growth.md and growth.png beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from rich.progress import track
from step_time import in_fresh_process, machine, seconds

from clars.lab.files import write_json, write_text

MODELS = ("resnet18", "mobilenetv2_100")
BATCHES = (8, 16, 32, 64, 128, 256, 512)
PIXELS = (32, 64, 96, 128, 160, 192, 224)
POINTS = [(batch, 32) for batch in BATCHES] + [(8, pixels) for pixels in PIXELS[1:]]
HERE = Path(__file__).parent


def measure(name: str, threads: int, rounds: int, device: torch.device) -> list[dict]:
    """Return, for each point, the seconds of a step by method."""
    torch.set_num_threads(threads)
    return [
        {"batch": batch, "pixels": pixels} | seconds(name, batch, pixels, rounds, device, ("sgd", "clars"))
        for batch, pixels in POINTS
    ]


def ratio(series: dict, batch: int, pixels: int) -> float:
    """Return the median over processes of CLARS's time over SGD's at one point."""
    points = [point for process in series["processes"] for point in process]
    found = [p["clars"] / p["sgd"] for p in points if (p["batch"], p["pixels"]) == (batch, pixels)]
    return statistics.median(found)


def markdown(result: dict) -> str:
    """Return the ratios as Markdown."""
    parts = [
        f"Time of a training step with CLARS over one with SGD: of {len(result['series'][0]['processes'])} processes, "
        f"each with the medians of {result['rounds']} interleaved rounds, the median. Measured on {result['device']}, "
        f"{result['cores']} cores.\n\nRegenerate with `{result['command']}`.\n\n![Cost by size](growth.png)\n"
    ]
    for axis, values, point in _axes():
        parts.append(f"| network | threads | {' | '.join(f'{axis} {value}' for value in values)} |")
        parts.append("|---|---|" + "---|" * len(values))
        for series in result["series"]:
            numbers = " | ".join(f"{ratio(series, *point(value)):.2f}" for value in values)
            parts.append(f"| {series['model']} | {series['threads']} | {numbers} |")
        parts.append("")
    return "\n".join(parts)


def chart(result: dict, path: Path) -> None:
    """Draw the ratios as curves."""
    points = [point(value) for _, values, point in _axes() for value in values]
    every = [ratio(series, *point) for point in points for series in result["series"]]
    figure, both = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (axis, values, point) in zip(both, _axes()):
        for series in result["series"]:
            label = f"{series['model']}, {series['threads']} thread{'s' * (series['threads'] > 1)}"
            axes.plot(values, [ratio(series, *point(value)) for value in values], marker="o", label=label)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_xlabel({"batch": "batch size, at 32 pixels", "px": "pixels, at batch 8"}[axis])
    both[0].set_ylim(0.95 * min(every), 1.05 * max(every))
    both[0].set_xscale("log", base=2)
    both[0].set_xticks(BATCHES, map(str, BATCHES))
    both[1].set_xticks(PIXELS, map(str, PIXELS))
    both[0].set_ylabel("step with CLARS over step with SGD")
    both[1].legend()
    figure.savefig(path, dpi=150)


def _axes() -> list[tuple]:
    return [("batch", BATCHES, lambda batch: (batch, 32)), ("px", PIXELS, lambda pixels: (8, pixels))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]), options.rounds, device)))
        return
    work = [(name, threads) for name in options.models for threads in options.threads]
    series = []
    for name, threads in track(work, "growth"):
        arguments = ("--rounds", options.rounds, "--measure", name, threads)
        processes = [in_fresh_process(__file__, *arguments) for _ in range(options.processes)]
        series.append({"model": name, "threads": threads, "processes": processes})
    result = machine(device, "growth.py") | {"rounds": options.rounds, "series": series}
    write_json(options.out / "growth.json", result)
    write_text(options.out / "growth.md", markdown(result))
    chart(result, options.out / "growth.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
