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
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate import Accelerator
from matplotlib import pyplot as plt
from step_time import machine
from torch import Tensor

from clars.optim import CLARS
from clars.recipes.load import load
from clars.results.files import write_json, write_text
from clars.results.jobs import Job
from clars.results.search import candidate
from clars.results.table import interval
from clars.training.display import Display
from clars.training.run import Options, Run

RECIPE = "quickstart/clars-512"
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


def run(job: Job, accelerator: Accelerator) -> float:
    """Return the accuracy at the end, in per cent."""
    with Display(1, shown=False) as display:
        record = Run(job, accelerator, Options(), display)()
    accelerator.free_memory()
    return record.final.top1


def search(estimator: str, folder: Path, accelerator: Accelerator) -> tuple[float, dict[float, float]]:
    """Return the best base rate for the estimator, and the mean accuracy on the validation split at each."""
    resolved = load(RECIPE, [f"optimizer.estimator={estimator}"])
    tried = {}
    for rate, jobs in candidate(
        estimator, resolved, RATES, SEARCH_SEEDS, folder / "search" / estimator, {}
    ).jobs.items():
        tried[rate] = statistics.mean(run(job, accelerator) for job in jobs)
        print(f"{estimator} rate {rate}: {tried[rate]:.2f} % on the validation split", flush=True)
    return max(tried, key=tried.get), tried


def observed(job: Job, accelerator: Accelerator) -> tuple[float, list[Tensor]]:
    """Run an exact job; return its accuracy and the estimates at each step."""
    seen: list[Tensor] = []
    original = CLARS.denominators

    def noted(self, *arguments):
        seen.append(estimates(self.norms.squares().values()))
        return original(self, *arguments)

    CLARS.denominators = noted
    try:
        return run(job, accelerator), seen
    finally:
        CLARS.denominators = original


def errors(seen: list[list[Tensor]]) -> list[dict[str, float]]:
    """Return, per step, the means and spreads of the estimates over layers and seeds."""
    rows = []
    for step, of_seeds in enumerate(zip(*seen)):
        ratios = torch.stack(of_seeds)  # [seeds, K, BLOCKS]
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
    for label, pair in result["accuracy"].items():
        exact, subset = pair["exact"]["top1"], pair["subset"]["top1"]
        differences = [b - a for a, b in zip(exact, subset)]
        mean, half = statistics.mean(differences), interval(differences)
        verdict = "zero inside" if abs(mean) <= half else "zero outside"
        rates = " and ".join(f"{pair[name]['rate']:g}" for name in ("exact", "subset"))
        lines.append(
            f"| {label}: {rates} | {statistics.mean(exact):.2f} ± {interval(exact):.2f} | "
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
    seen: list[list[Tensor]] = []
    accuracy: dict[str, dict] = {"the recipe's": {}, "searched": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for estimator in ("exact", "subset"):
            found, tried = search(estimator, Path(temporary), accelerator)
            own = load(RECIPE, []).recipe.schedule.base_rate
            for label, rate in (("the recipe's", own), ("searched", found)):
                top1 = []
                for seed in range(options.seeds):
                    changes = [f"optimizer.estimator={estimator}", f"schedule.base_rate={rate}"]
                    job = Job(load(RECIPE, changes), seed, Path(temporary, label, estimator, f"seed{seed}"))
                    if estimator == "exact" and label == "the recipe's":
                        value, steps = observed(job, accelerator)
                        seen.append(steps)
                    else:
                        value = run(job, accelerator)
                    top1.append(value)
                accuracy[label][estimator] = {"rate": rate, "top1": top1}
                print(f"{estimator} at rate {rate}: {statistics.mean(top1):.2f} %", flush=True)
            accuracy["searched"][estimator]["validation"] = {str(rate): value for rate, value in tried.items()}
    result = machine(torch.device("cpu"), "subset.py") | {
        "recipe": RECIPE,
        "seeds": options.seeds,
        "accuracy": accuracy,
        "errors": errors(seen),
    }
    write_json(options.out / "subset.json", result)
    write_text(options.out / "subset.md", markdown(result))
    chart(result, options.out / "subset.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
