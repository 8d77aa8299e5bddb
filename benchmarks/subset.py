"""The subset estimator on a real recipe: its error over training, and the accuracy that it ends with.

    python benchmarks/subset.py

Trains quickstart/clars-512 from several seeds with estimator=exact and with estimator=subset (1/8 of the batch).

- Error: at each step of the exact runs the norms of all examples are at hand, so the estimate of each of the eight
  blocks that could have been drawn is too. Reported per layer and step: the mean of the estimates over the exact sum,
  which is 1 for an unbiased estimator, and their relative standard deviation.
- Accuracy: mean, 95 % interval and the paired difference by seed; at the recipe's rate, which was searched with the
  exact estimator, and at the rate that suits each of the two, searched alike: the same rates and seeds, judged on the
  validation split.

Writes subset.json, subset.md and subset.png beside this file, or to the folder given by --out.
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from matplotlib import pyplot as plt
from rich.progress import track
from step_time import machine
from torch import Tensor

from clars.lab.files import write_json, write_text
from clars.lab.recipes.load import load
from clars.lab.runs.jobs import Job
from clars.lab.tables.search import candidate, jobs_of, summarise
from clars.lab.tables.summary import interval
from clars.lab.training.display import Display
from clars.lab.training.run import MachineOptions, TrainingRun
from clars.optim import CLARS

RECIPE = "quickstart/clars-512"
ESTIMATORS = ("exact", "subset")
BLOCKS = 8
RATES = [4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
SEARCH_SEEDS = [100, 101, 102]
HERE = Path(__file__).parent


def estimates(squares: Iterable[Tensor]) -> Tensor:
    """Return each block's estimate over the exact sum [K, BLOCKS], of the layers of one exact backward pass."""
    rows = []
    for of_layer in squares:
        norms = of_layer.double().sqrt()
        blocks = [norms[i * len(norms) // BLOCKS : (i + 1) * len(norms) // BLOCKS].sum() for i in range(BLOCKS)]
        rows.append(BLOCKS * torch.stack(blocks) / norms.sum())
    return torch.stack(rows)


def accuracy(job: Job, accelerator: Accelerator) -> float:
    """Run a job; return its accuracy at the end, in per cent."""
    with Display(1, shown=False) as display:
        record = TrainingRun(job, accelerator, MachineOptions(), display)()
    accelerator.free_memory()
    return record.final.top1


def search(estimator: str, folder: Path, accelerator: Accelerator) -> dict:
    """Return what the search for the estimator's base rate found: its winner, and each rate's accuracies."""
    resolved = load(RECIPE, [f"optimizer.estimator={estimator}"])
    found = [candidate(estimator, resolved, RATES, SEARCH_SEEDS, folder / "search" / estimator, {})]
    for job in track(jobs_of(found), f"{estimator}: search"):
        accuracy(job, accelerator)
    return summarise(found, *RECIPE.split("/"))["methods"][estimator]


def accuracies(estimator: str, rate: float, seeds: int, folder: Path, accelerator: Accelerator) -> list[float]:
    """Return the accuracy by seed."""
    resolved = load(RECIPE, [f"optimizer.estimator={estimator}", f"schedule.base_rate={rate}"])
    jobs = [Job(resolved, seed, folder / f"{estimator}-{rate}" / f"seed{seed}") for seed in range(seeds)]
    return [accuracy(job, accelerator) for job in track(jobs, f"{estimator}: rate {rate:g}")]


@contextmanager
def observed(seen: list[Tensor]) -> Iterator[None]:
    """Note the estimates [K, BLOCKS] at each step of the exact runs inside."""
    original = CLARS.denominators

    def noted(self, *arguments):
        seen.append(estimates(self.norms.squares().values()))
        return original(self, *arguments)

    CLARS.denominators = noted
    try:
        yield
    finally:
        CLARS.denominators = original


def errors(seen: list[Tensor], seeds: int) -> list[dict[str, float]]:
    """Return, per step, the means and spreads of the estimates over layers and seeds, which follow one another."""
    rows = []
    by_seed = torch.stack(seen).unflatten(0, (seeds, -1))
    for step, ratios in enumerate(by_seed.transpose(0, 1)):  # [seeds, K, BLOCKS]
        spread = ratios.std(-1, correction=0)
        rows.append(
            {
                "step": step,
                "mean": float(ratios.mean()),
                "spread_median": float(spread.median()),
                "spread_largest": float(spread.max()),
            }
        )
    return rows


def markdown(result: dict) -> str:
    """Return the result as Markdown."""
    lines = [
        f"{RECIPE} from {result['seeds']} seeds, {len(result['errors'])} steps; the subset estimator measures one of "
        f"{BLOCKS} blocks of the batch. Regenerate with `{result['command']}`.",
        "",
        "| base rate | exact, % | subset, % | subset minus exact, paired by seed | n |",
        "|---|---:|---:|---:|---:|",
    ]
    for label in ("the recipe's", "searched"):
        rates = [result["rates"][label][name] for name in ESTIMATORS]
        exact, subset = (result["top1"][name][f"{rate:g}"] for name, rate in zip(ESTIMATORS, rates))
        differences = [b - a for a, b in zip(exact, subset)]
        mean, half = statistics.mean(differences), interval(differences)
        verdict = "zero inside" if abs(mean) <= half else "zero outside"
        lines.append(
            f"| {label}: {rates[0]:g} and {rates[1]:g} | {statistics.mean(exact):.2f} ± {interval(exact):.2f} | "
            f"{statistics.mean(subset):.2f} ± {interval(subset):.2f} | {mean:+.2f} ± {half:.2f}, {verdict} | "
            f"{len(exact)} |"
        )
    lines += [
        "",
        f"± is the 95 % interval. Searched: {len(RATES)} rates ({RATES[0]:g} to {RATES[-1]:g}), "
        f"{len(SEARCH_SEEDS)} seeds each, on the validation split, for either estimator.",
        "",
    ]
    lines += [
        "| steps | mean of the estimates / exact | spread, median layer | spread, worst layer |",
        "|---|---|---|---|",
    ]
    quarter = math.ceil(len(result["errors"]) / 4)
    for start in range(0, len(result["errors"]), quarter):
        part = result["errors"][start : start + quarter]
        lines.append(
            f"| {part[0]['step'] + 1} to {part[-1]['step'] + 1} | "
            f"{statistics.mean(row['mean'] for row in part):.4f} | "
            f"{100 * statistics.mean(row['spread_median'] for row in part):.1f} % | "
            f"{100 * max(row['spread_largest'] for row in part):.1f} % |"
        )
    return "\n".join(lines) + "\n"


def chart(result: dict, path: Path) -> None:
    """Draw the spread over training."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    steps = [row["step"] + 1 for row in result["errors"]]
    axes.plot(steps, [100 * row["spread_median"] for row in result["errors"]], label="median layer")
    axes.plot(steps, [100 * row["spread_largest"] for row in result["errors"]], label="worst layer and seed")
    axes.set_xlabel("step")
    axes.set_ylabel("relative standard deviation\nof the estimate, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    own, seen = load(RECIPE, []).recipe.schedule.base_rate, []
    with tempfile.TemporaryDirectory() as temporary:
        place = (Path(temporary), accelerator)
        searches = {name: search(name, *place) for name in ESTIMATORS}
        rates = {
            "the recipe's": dict.fromkeys(ESTIMATORS, own),
            "searched": {name: searches[name]["winner"] for name in ESTIMATORS},
        }
        with observed(seen):
            top1 = {"exact": {f"{own:g}": accuracies("exact", own, options.seeds, *place)}, "subset": {}}
        for name, rate in [pair for each in rates.values() for pair in each.items()]:
            if f"{rate:g}" not in top1[name]:
                top1[name][f"{rate:g}"] = accuracies(name, rate, options.seeds, *place)
    result = machine(torch.device("cpu"), "subset.py") | {
        "recipe": RECIPE,
        "seeds": options.seeds,
        "search": searches,
        "rates": rates,
        "top1": top1,
        "errors": errors(seen, options.seeds),
    }
    write_json(options.out / "subset.json", result)
    write_text(options.out / "subset.md", markdown(result))
    chart(result, options.out / "subset.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
