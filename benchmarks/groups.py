"""Cost of a step with CLARS by how many examples are measured together.

    python benchmarks/groups.py

As step_time.py, whose steps these are: the groups of each size take turns within one process, each with its own copy of
the network. Groups of one are every example by itself; the largest is the whole batch, whose norm is LARS's. Writes
groups.json and groups.md beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
from pathlib import Path

import step_time
import torch
from rich.progress import track

import clars
from clars.lab.files import write_json, write_text

PIXELS = {name: min(112, pixels) for name, pixels in step_time.MODELS.items() if not name.startswith("vit")}
PIXELS["vit_tiny_patch16_224"] = 112
GROUPS = (1, 2, 8, 32)
SGD = "sgd"


def optimizer(method: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return SGD, or CLARS by the size of its groups, as text."""
    if method == SGD:
        return torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)
    if method == "1":
        return clars.CLARS(model, 1e-3)
    return clars.CLARS(model, 1e-3, estimator="group", group=int(method))


def markdown(result: dict) -> str:
    """Return the table of a result as Markdown."""
    head = "| network | threads | SGD, s | " + " | ".join(f"groups of {group}" for group in GROUPS) + " |"
    rows = [head.replace("groups of 1 ", "exact, over SGD "), "|---" * (3 + len(GROUPS)) + "|"]
    for row in result["rows"]:
        sgd = statistics.median(taken[SGD] for taken in row["seconds"])
        exact = statistics.median(taken["1"] / taken[SGD] for taken in row["seconds"])
        others = [statistics.median(taken[str(group)] / taken["1"] for taken in row["seconds"]) for group in GROUPS[1:]]
        values = " | ".join(f"{value:.2f}" for value in (exact, *others))
        rows.append(f"| {row['model']}, {row['pixels']} px | {row['threads']} | {sgd:.2f} | {values} |")
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Time of a training step with groups of examples over that with every example by itself, at batch "
        f"{result['batch']}: in each process the median of {result['rounds']} interleaved rounds, of "
        f"{result['processes']} processes the median. Measured on {result['device']}, {result['cores']} cores. GPU: "
        f"not measured. {made}.\n\nRegenerate with `{result['command']}`.\n\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=PIXELS, default=list(PIXELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=max(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=step_time.HERE)
    parser.add_argument("--time", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.time:
        name, threads = options.time
        torch.set_num_threads(int(threads))
        step_time.optimizer = optimizer
        methods = [SGD, *map(str, GROUPS)]
        print(json.dumps(step_time.seconds(name, options.batch, PIXELS[name], options.rounds, device, methods)))
        return
    size = ("--batch", options.batch, "--rounds", options.rounds)
    rows = []
    for name, threads in track([(name, threads) for name in options.models for threads in options.threads], "time"):
        taken = [step_time.in_fresh_process(__file__, *size, "--time", name, threads) for _ in range(options.processes)]
        rows.append({"model": name, "pixels": PIXELS[name], "threads": threads, "seconds": taken})
    options_used = {"batch": options.batch, "rounds": options.rounds, "processes": options.processes}
    result = step_time.machine(device, "groups.py") | options_used | {"rows": rows}
    write_json(options.out / "groups.json", result)
    write_text(options.out / "groups.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
