"""The subset estimator on a real recipe: its error over training, and the accuracy that it ends with.

    python benchmarks/subset.py

Trains quickstart/clars-512 from several seeds with estimator=exact and with estimator=subset (1/8 of the batch).

- Error: at each step of the exact runs the norms of all examples are at hand, so the estimate of each of the eight
  blocks that could have been drawn is too. Reported per layer and step: the mean of the estimates over the exact sum,
  which is 1 for an unbiased estimator, and their relative standard deviation.
- Accuracy: mean, 95 % interval and the paired difference by seed.

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
from clars.results.table import interval
from clars.training.display import Display
from clars.training.run import Options, Run

RECIPE = "quickstart/clars-512"
BLOCKS = 8
HERE = Path(__file__).parent


def estimates(squares: Iterable[Tensor]) -> Tensor:
    """Return each block's estimate over the exact sum [K, BLOCKS], of the layers of one exact backward pass."""
    rows = []
    for of_layer in squares:
        norms = of_layer.double().sqrt()
        blocks = [norms[i * len(norms) // BLOCKS : (i + 1) * len(norms) // BLOCKS].sum() for i in range(BLOCKS)]
        rows.append(BLOCKS * torch.stack(blocks) / norms.sum())
    return torch.stack(rows)


def train(estimator: str, seed: int, folder: Path, accelerator: Accelerator) -> tuple[float, list[Tensor]]:
    """Run the recipe; return its accuracy and, of an exact run, the estimates at each step."""
    seen: list[Tensor] = []
    original = CLARS.denominators

    def observed(self, *arguments):
        seen.append(estimates(self.norms.squares().values()))
        return original(self, *arguments)

    if estimator == "exact":
        CLARS.denominators = observed
    try:
        job = Job(load(RECIPE, [f"optimizer.estimator={estimator}"]), seed, folder / estimator / f"seed{seed}")
        with Display(1, shown=False) as display:
            record = Run(job, accelerator, Options(), display)()
    finally:
        CLARS.denominators = original
    accelerator.free_memory()
    return record.final.top1, seen


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
    exact, subset = result["top1"]["exact"], result["top1"]["subset"]
    differences = [b - a for a, b in zip(exact, subset)]
    lines = [
        f"{RECIPE} from {len(exact)} seeds, {len(result['errors'])} steps; the subset estimator measures one of "
        f"{BLOCKS} blocks of the batch. Regenerate with `{result['command']}`.",
        "",
        "| estimator | top-1, % | 95 % interval | n |",
        "|---|---:|---:|---:|",
    ]
    for name, values in (("exact", exact), ("subset, 1/8", subset)):
        lines.append(f"| {name} | {statistics.mean(values):.2f} | ± {interval(values):.2f} | {len(values)} |")
    mean, half = statistics.mean(differences), interval(differences)
    verdict = "zero is inside" if abs(mean) <= half else "zero is outside"
    lines += ["", f"Subset minus exact, paired by seed: {mean:+.2f} ± {half:.2f} points; {verdict} the interval.", ""]
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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    top1: dict[str, list[float]] = {"exact": [], "subset": []}
    seen: list[list[Tensor]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for estimator, values in top1.items():
                accuracy, steps = train(estimator, seed, Path(folder), accelerator)
                values.append(accuracy)
                seen += [steps] if steps else []
                print(f"{estimator} seed {seed}: {accuracy:.2f} %", flush=True)
    device = torch.device("cpu")
    result = machine(device, "subset.py") | {"recipe": RECIPE, "top1": top1, "errors": errors(seen)}
    write_json(options.out / "subset.json", result)
    write_text(options.out / "subset.md", markdown(result))
    chart(result, options.out / "subset.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
