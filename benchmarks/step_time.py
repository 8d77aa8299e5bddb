"""Cost of a training step: torch's SGD, LARS and CLARS on ordinary networks.

    python benchmarks/step_time.py

A step is zero_grad, forward, cross entropy, backward and optimizer step, on one batch of random images. The methods
take turns within one process, each with its own copy of the network, and the median over the rounds counts. This is
repeated in several fresh processes, because where the memory of one happens to lie moves a ratio by a tenth and more.
Peak memory is that of a process of its own per method, beyond what importing takes. Writes step_time.json and
step_time.md beside this file, or to the folder given by --out.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from rich.progress import track
from torch.nn import functional as F

import clars
from clars.results.files import write_json, write_text
from clars.results.provenance import device_name, versions

MODELS = {"resnet18": 224, "resnet50": 224, "mobilenetv2_100": 224, "densenet121": 224}
METHODS = ("sgd", "lars", "clars")
HERE = Path(__file__).parent


def optimizer(method: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    if method == "sgd":
        return torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)
    return {"lars": clars.LARS, "clars": clars.CLARS}[method](model, 1e-3)


class Step:
    """A network with its optimizer, and one training step of it."""

    def __init__(self, name: str, method: str, batch: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = timm.create_model(name, num_classes=1000).to(device)
        self.optimizer = optimizer(method, self.model)
        self.x = torch.randn(batch, 3, MODELS[name], MODELS[name], device=device)
        self.y = torch.randint(1000, (batch,), device=device)

    def __call__(self) -> float:
        """Take a step; return its seconds."""
        self._wait()
        began = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def seconds(name: str, batch: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of a step by method; the methods take turns."""
    steps = {method: Step(name, method, batch, device) for method in METHODS}
    taken: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, step in steps.items():
            second = step()
            if turn:  # the first round warms up
                taken[method].append(second)
    return {method: statistics.median(values) for method, values in taken.items()}


def peak_bytes(name: str, method: str, batch: int, device: torch.device) -> int:
    """Return the peak memory of two steps in this process, beyond what it held before the network was made."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = _resident("VmRSS")
    step = Step(name, method, batch, device)
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")) - before


def _resident(field: str) -> int:
    """Return bytes from Linux's account of this process; getrusage would count the parent's memory before exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def in_fresh_process(*arguments: object) -> dict | int:
    """Return what this script prints as JSON in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def ratios(row: dict, method: str) -> list[float]:
    """Return the method's time over SGD's, a number per process."""
    return sorted(taken[method] / taken["sgd"] for taken in row["seconds"])


def markdown(result: dict) -> str:
    """Return the table of a result as Markdown."""
    rows = [
        "| network | threads | SGD, s | LARS / SGD | CLARS / SGD | range | peak memory, CLARS / SGD |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        sgd = statistics.median(taken["sgd"] for taken in row["seconds"])
        lars, ours = ratios(row, "lars"), ratios(row, "clars")
        rows.append(
            f"| {row['model']}, {row['pixels']} px | {row['threads']} | {sgd:.2f} | {statistics.median(lars):.2f} | "
            f"{statistics.median(ours):.2f} | {ours[0]:.2f} to {ours[-1]:.2f} | "
            f"{row['peak_bytes']['clars'] / row['peak_bytes']['sgd']:.2f} |"
        )
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    head = (
        f"Seconds of a training step at batch {result['batch']}: in each process the median of {result['rounds']} "
        f"interleaved rounds, of {result['processes']} processes the median and, for CLARS, the range. Measured on "
        f"{result['device']}, {result['cores']} cores. {made}.\n\n"
        f"Regenerate with `{result['command']}`.\n\n"
    )
    return head + "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--time", nargs=2, metavar=("MODEL", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.peak:
        print(peak_bytes(*options.peak, options.batch, device))
        return
    if options.time:
        torch.set_num_threads(int(options.time[1]))
        print(json.dumps(seconds(options.time[0], options.batch, options.rounds, device)))
        return
    size = ("--batch", options.batch, "--rounds", options.rounds)
    peaks = {
        name: {method: in_fresh_process(*size, "--peak", name, method) for method in METHODS}
        for name in track(options.models, "memory")
    }
    rows = []
    for name, threads in track([(name, threads) for name in options.models for threads in options.threads], "time"):
        taken = [in_fresh_process(*size, "--time", name, threads) for _ in range(options.processes)]
        rows.append(
            {"model": name, "pixels": MODELS[name], "threads": threads, "seconds": taken, "peak_bytes": peaks[name]}
        )
    result = {
        "command": " ".join(["python", "benchmarks/step_time.py", *sys.argv[1:]]),
        "device": device_name(device),
        "cores": torch.multiprocessing.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
        "batch": options.batch,
        "rounds": options.rounds,
        "processes": options.processes,
        "rows": rows,
    }
    write_json(options.out / "step_time.json", result)
    write_text(options.out / "step_time.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
