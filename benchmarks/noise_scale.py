"""Does the measured noise scale tell the batch size up to which a larger batch saves steps?

    python benchmarks/noise_scale.py

Trains fcn5 on digits by plain SGD at a constant rate, from batch 16 to 512, until 90 % of the pictures are told right.
McCandlish et al. 2018 (arXiv 1812.06162) expect steps(B) = S_min * (1 + B_crit / B), with a B_crit near the noise
scale, averaged over training.

- Search: for every batch the same rates and seeds; the rate with the fewest mean steps to the target on the validation
  split wins, among those with which every seed gets there.
- Measurement: other seeds, on the test split, by the winners. S_min and B_crit are fitted to the logarithms of the
  steps, for each seed by itself. The noise scale is the mean of that run's lines up to the target.

Target, batches and grid were fixed after trials: with a target of 95 %, a run at batch 8 stayed below; with 90 %, most
runs at batch 8 were there by the end of the first epoch, the first time that one looks. Writes noise_scale.json,
noise_scale.md and noise_scale.png beside this file, or to the folder given by --out.
"""

import argparse
import math
import statistics
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from matplotlib import pyplot as plt
from rich.progress import track
from scipy.optimize import minimize_scalar
from step_time import HERE, machine

from clars.lab import runs
from clars.lab.files import write_json, write_text
from clars.lab.recipes.load import load
from clars.lab.runs.jobs import Job
from clars.lab.runs.noise import read
from clars.lab.tables.scaling import steps_to
from clars.lab.tables.summary import interval
from clars.lab.training.display import Display
from clars.lab.training.run import MachineOptions, TrainingRun

RECIPE = "quickstart/sgd-64@v1"
TARGET = 90.0
EPOCHS = {16: 8, 32: 10, 128: 25, 512: 60}  # by batch: enough to get there
RATES = [0.0125 * 2**k for k in range(7)]
SEARCH_SEEDS = [200, 201, 202]
FIRST_SEED = 20  # of the measurement
CHANGES = [
    "model={name: fcn5, arguments: {width: 64}}",
    "optimizer={name: sgd, momentum: 0, nesterov: false, weight_decay: 0}",
    "evaluation.batch_norm=running",
]


def train(batch: int, rate: float, seed: int, split: str, out: Path, noise: int | None) -> runs.Run:
    """Train one run, the noise scale noted every `noise` steps; return it."""
    schedule = f"schedule={{name: constant, base_rate: {rate}, base_batch: {batch}}}"
    words = [*CHANGES, schedule, f"batch_size={batch}", f"epochs={EPOCHS[batch]}", f"evaluation.split={split}"]
    folder = runs.folder(out, f"{batch}-{rate}", seed)
    accelerator = Accelerator(cpu=True)
    with Display(1, shown=False) as display:
        TrainingRun(Job(load(RECIPE, words), seed, folder), accelerator, MachineOptions(noise_scale=noise), display)()
    accelerator.free_memory()
    return runs.read_folder(folder, seed)


def search(batch: int, out: Path) -> dict:
    """Return the steps to the target of each rate and seed, None where it is not reached, and the winner."""
    tried = {}
    for rate in track(RATES, f"batch {batch}: search"):
        found = [train(batch, rate, seed, "validation", out, None) for seed in SEARCH_SEEDS]
        tried[rate] = [steps_to(run, TARGET) for run in found]
    means = {rate: statistics.fmean(steps) for rate, steps in tried.items() if None not in steps}
    winner = min(means, key=means.get)
    return {"steps": {f"{rate:g}": steps for rate, steps in tried.items()}, "winner": winner}


def measure(batch: int, rate: float, seed: int, out: Path) -> dict:
    """Return the steps of one run to the target, None if it stays below; and its noise scale up to there."""
    run = train(batch, rate, seed, "test", out, 1)
    steps = steps_to(run, TARGET)
    lines = [line.noise_scale for line in read(run) if steps is None or line.step <= max(1, steps)]
    known = [value for value in lines if value is not None]
    counts = {"lines": len(lines), "unknown": len(lines) - len(known), "at_once": run.metrics[0]["top1"] >= TARGET}
    return {"seed": seed, "steps": steps, "noise_scale": statistics.fmean(known), "last": known[-1], **counts}


def fitted(steps: dict[int, float]) -> tuple[float, float]:
    """Return S_min and B_crit of steps by batch, by least squares of the logarithms."""

    def least(log_critical: float) -> float:
        """Return the logarithm of the best S_min for a B_crit."""
        critical = math.exp(log_critical)
        return statistics.fmean(math.log(s) - math.log1p(critical / batch) for batch, s in steps.items())

    def error(log_critical: float) -> float:
        critical, least_steps = math.exp(log_critical), least(log_critical)
        return sum((math.log(s) - least_steps - math.log1p(critical / batch)) ** 2 for batch, s in steps.items())

    best = minimize_scalar(error, bounds=(math.log(1e-2), math.log(1e5)), method="bounded").x
    return math.exp(least(best)), math.exp(best)


def whole(measured: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Return what was measured of the seeds that reach the target at every batch."""
    seeds = [row for row in zip(*measured.values()) if all(each["steps"] is not None for each in row)]
    return dict(zip(measured, map(list, zip(*seeds))))


def fits(measured: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Return S_min and B_crit by seed."""
    found = [
        fitted({int(batch): each["steps"] for batch, each in zip(measured, row)}) for row in zip(*measured.values())
    ]
    return {"S_min": [least for least, _ in found], "B_crit": [critical for _, critical in found]}


def told(values: list[float], digits: int = 0) -> str:
    """Return mean and 95 % interval."""
    return f"{statistics.fmean(values):.{digits}f} ± {interval(values):.{digits}f}"


def ratios(result: dict, batch: str) -> list[float]:
    """Return the measured noise scale over B_crit, by seed."""
    measured = [each["noise_scale"] for each in whole(result["measured"])[batch]]
    return [scale / critical for scale, critical in zip(measured, result["fit"]["B_crit"])]


def verdict(values: list[float]) -> str:
    mean, half = statistics.fmean(values), interval(values)
    return "1 inside" if abs(mean - 1) <= half else "1 outside"


def markdown(result: dict) -> str:
    """Return the result as Markdown."""
    fit = result["fit"]
    least, critical = (statistics.fmean(fit[name]) for name in ("S_min", "B_crit"))
    rows = [
        f"fcn5 on digits by SGD, mean and 95 % interval over {result['seeds']} seeds. Fitted, steps(B) = S_min "
        f"(1 + B_crit / B): S_min = {told(fit['S_min'], 1)} steps, B_crit = {told(fit['B_crit'], 1)} examples. "
        f"Measured on {result['device']}. Regenerate with `{result['command']}`.",
        "",
        f"| batch | rate | steps to {TARGET:g} % | by the fit | noise scale until then | at the end | over B_crit |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    measured = whole(result["measured"])
    for batch, each in measured.items():
        rate, over = result["search"][batch]["winner"], ratios(result, batch)
        edge = " (edge)" if rate in (RATES[0], RATES[-1]) else ""
        by_fit = least * (1 + critical / int(batch))
        steps, scale, last = ([one[key] for one in each] for key in ("steps", "noise_scale", "last"))
        rows.append(
            f"| {batch} | {rate:g}{edge} | {told(steps)} | {by_fit:.0f} | {told(scale, 1)} | {told(last, 1)} | "
            f"{told(over, 2)}, {verdict(over)} |"
        )
    every = [one for each in measured.values() for one in each]
    unknown, lines, at_once = (sum(one[key] for one in every) for key in ("unknown", "lines", "at_once"))
    missing = result["seeds"] - len(next(iter(measured.values())))
    rows += [
        "",
        f"Searched for every batch: {len(RATES)} rates ({RATES[0]:g} to {RATES[-1]:g}, by factors of 2), "
        f"{len(SEARCH_SEEDS)} seeds each, on the validation split. Of {lines} lines, {unknown} had no finite noise "
        f"scale and are left out of the means. {missing} seeds did not reach "
        f"the target at every batch and are left out; {at_once} of {len(every)} runs were there by the first "
        "evaluation, at the end of the first epoch. The last column is the measured noise scale over the fitted "
        "B_crit, by seed; with 1 inside its interval the two cannot be told apart.",
    ]
    return "\n".join(rows) + "\n"


def chart(result: dict, path: Path) -> None:
    """Draw the steps over the batch, the fitted curve, and where B_crit and the measured noise scales lie."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    measured = whole(result["measured"])
    batches = [int(batch) for batch in measured]
    steps = [[one["steps"] for one in each] for each in measured.values()]
    fit = {name: statistics.fmean(values) for name, values in result["fit"].items()}
    grid = [min(batches) * (max(batches) / min(batches)) ** (k / 100) for k in range(101)]
    axes.plot(grid, [fit["S_min"] * (1 + fit["B_crit"] / b) for b in grid], color="#0072B2", label="fit")
    means, halves = [statistics.fmean(each) for each in steps], [interval(each) for each in steps]
    axes.errorbar(batches, means, halves, fmt="o", color="#0072B2", capsize=3, label=f"steps to {TARGET:g} %")
    axes.axvline(fit["B_crit"], color="#0072B2", linestyle="--", label="B_crit of the fit")
    scales = [statistics.fmean(one["noise_scale"] for one in each) for each in measured.values()]
    axes.axvspan(
        min(scales), max(scales), color="#D55E00", alpha=0.25, label="noise scale, measured at the four batches"
    )
    axes.set(xlabel="batch", ylabel="steps", yscale="log")
    axes.set_xscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    searched, measured = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for batch in EPOCHS:
            found = searched[f"{batch}"] = search(batch, Path(temporary, "search"))
            place = found["winner"], Path(temporary, "runs")
            seeds = track(range(FIRST_SEED, FIRST_SEED + options.seeds), f"batch {batch}: rate {found['winner']:g}")
            measured[f"{batch}"] = [measure(batch, place[0], seed, place[1]) for seed in seeds]
    result = machine(torch.device("cpu"), "noise_scale.py") | {
        "recipe": RECIPE,
        "overrides": CHANGES,
        "epochs": EPOCHS,
        "target": TARGET,
        "seeds": options.seeds,
        "search_seeds": SEARCH_SEEDS,
        "search": searched,
        "measured": measured,
        "fit": fits(whole(measured)),
    }
    write_json(options.out / "noise_scale.json", result)
    write_text(options.out / "noise_scale.md", markdown(result))
    chart(result, options.out / "noise_scale.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
