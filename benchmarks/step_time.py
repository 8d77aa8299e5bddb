"""Cost of a training step: torch's SGD, LARS and CLARS on ordinary networks.

    python benchmarks/step_time.py

A step is zero_grad, forward, cross entropy, backward and optimizer step, on one batch of random images. The methods
take turns within one process, each with its own copy of the network, and the median over the rounds counts. This is
repeated in several fresh processes, because where the memory of one happens to lie moves a ratio by a tenth and more.
The C library keeps freed memory there (`KEEP_MEMORY`): by default it returns it to the system after every backward
pass and fetches it again in the next forward, which takes time with every method. Peak memory is that of a process of
its own per method, with the C library's defaults, beyond what importing takes. Writes step_time.json, step_time.md and
step_time.png beside this file, or to the folder given by --out.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import timm
import torch
import torchvision
from matplotlib import pyplot as plt
from rich.progress import track
from torch.nn import functional as F

import clars
from clars.lab.files import write_json, write_text
from clars.lab.runs.provenance import device_name, versions

MODELS = {
    "resnet50": 224,
    "densenet121": 224,
    "mobilenetv2_100": 224,
    "resnet18": 112,
    "vit_tiny_patch16_224": 224,
    "convnext_atto": 224,
}
METHODS = {"sgd": "SGD", "lars": "LARS", "clars": "CLARS", "subset": "CLARS, 1/8 of the batch"}
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # keeps the line at 1 out of the numbers
HERE = Path(__file__).parent


def optimizer(method: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    if method == "sgd":
        return torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)
    if method == "lars":
        return clars.LARS(model, 1e-3)
    return clars.CLARS(model, 1e-3, estimator="subset" if method == "subset" else "exact")


def network(name: str, **options: object) -> torch.nn.Module:
    """Return a network of timm's for a thousand classes, or torchvision's where timm has none of that name."""
    if timm.is_model(name):
        return timm.create_model(name, num_classes=1000, **options)
    return torchvision.models.get_model(name, num_classes=1000)


class Step:
    """A network with its optimizer, and one training step of it."""

    def __init__(self, name: str, method: str, batch: int, pixels: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        size = {"img_size": pixels} if name.startswith("vit") else {}  # which else takes its own alone
        self.model = network(name, **size).to(device)
        self.optimizer = optimizer(method, self.model)
        self.x = torch.randn(batch, 3, pixels, pixels, device=device)
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


def seconds(
    name: str, batch: int, pixels: int, rounds: int, device: torch.device, methods: Iterable[str] = METHODS
) -> dict[str, float]:
    """Return the median seconds of a step by method; the methods take turns."""
    steps = {method: Step(name, method, batch, pixels, device) for method in methods}
    taken: dict[str, list[float]] = {method: [] for method in methods}
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
    step = Step(name, method, batch, MODELS[name], device)
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")) - before


def _resident(field: str) -> int:
    """Return bytes from Linux's account of this process; getrusage would count the parent's memory before exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def in_fresh_process(script: str, *arguments: object, environment: Mapping[str, str] = KEEP_MEMORY) -> dict | int:
    """Return what `script` prints as JSON in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | dict(environment))
    return json.loads(done.stdout)


def ratios(row: dict, method: str) -> list[float]:
    """Return the method's time over SGD's, a number per process."""
    return sorted(taken[method] / taken["sgd"] for taken in row["seconds"])


def markdown(result: dict) -> str:
    """Return the table of a result as Markdown."""
    rows = [
        "| network | threads | SGD, s | LARS | CLARS | range | CLARS, 1/8 | memory, CLARS | memory, 1/8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        sgd = statistics.median(taken["sgd"] for taken in row["seconds"])
        each = {method: ratios(row, method) for method in METHODS}
        middle = {method: statistics.median(values) for method, values in each.items()}
        memory = {method: value / row["peak_bytes"]["sgd"] for method, value in row["peak_bytes"].items()}
        rows.append(
            f"| {row['model']}, {row['pixels']} px | {row['threads']} | {sgd:.2f} | {middle['lars']:.2f} | "
            f"{middle['clars']:.2f} | {each['clars'][0]:.2f} to {each['clars'][-1]:.2f} | {middle['subset']:.2f} | "
            f"{memory['clars']:.2f} | {memory['subset']:.2f} |"
        )
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    head = (
        f"Time of a training step over that with torch's SGD, at batch {result['batch']}: in each process the median "
        f"of {result['rounds']} interleaved rounds, of {result['processes']} processes the median and, for CLARS, the "
        f"range; and peak memory over SGD's. Measured on {result['device']}, {result['cores']} cores. GPU: not "
        f"measured. {made}.\n\nRegenerate with `{result['command']}`.\n\n![Time over SGD](step_time.png)\n\n"
    )
    if not result["device"].startswith("cpu"):
        head = head.replace(" GPU: not measured.", "")
    return head + "\n".join(rows) + "\n"


def chart(result: dict, path: Path) -> None:
    """Draw the ratios of CLARS as bars."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    threads = sorted({row["threads"] for row in result["rows"]})
    height = 0.8 / len(threads)
    for place, count in enumerate(threads):
        rows = {
            row["model"]: statistics.median(ratios(row, "clars")) for row in result["rows"] if row["threads"] == count
        }
        at = [index + place * height for index in range(len(names))]
        bars = axes.barh(at, [rows[name] for name in names], height, label=f"{count} thread{'s' * (count > 1)}")
        axes.bar_label(bars, fmt="%.2f", padding=3, bbox=LABEL)
    axes.set_yticks([index + height * (len(threads) - 1) / 2 for index in range(len(names))], names)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, 1.1 * max(bar.get_width() for bar in axes.patches))
    axes.set_xlabel("time of a training step with CLARS over one with SGD")
    figure.legend(loc="outside upper right", ncols=len(threads))
    figure.savefig(path, dpi=150)


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
        name, threads = options.time
        torch.set_num_threads(int(threads))
        print(json.dumps(seconds(name, options.batch, MODELS[name], options.rounds, device)))
        return
    size = ("--batch", options.batch, "--rounds", options.rounds)
    peaks = {
        name: {method: in_fresh_process(__file__, *size, "--peak", name, method, environment={}) for method in METHODS}
        for name in track(options.models, "memory")
    }
    rows = []
    for name, threads in track([(name, threads) for name in options.models for threads in options.threads], "time"):
        taken = [in_fresh_process(__file__, *size, "--time", name, threads) for _ in range(options.processes)]
        rows.append(
            {"model": name, "pixels": MODELS[name], "threads": threads, "seconds": taken, "peak_bytes": peaks[name]}
        )
    result = machine(device, "step_time.py") | {
        "batch": options.batch,
        "rounds": options.rounds,
        "processes": options.processes,
        "rows": rows,
    }
    write_json(options.out / "step_time.json", result)
    write_text(options.out / "step_time.md", markdown(result))
    chart(result, options.out / "step_time.png")
    print(markdown(result))


def machine(device: torch.device, script: str) -> dict:
    """Return what was run, and on what."""
    return {
        "command": " ".join(["python", f"benchmarks/{script}", *sys.argv[1:]]),
        "device": device_name(device),
        "cores": torch.multiprocessing.cpu_count(),
        "system": platform.platform(),
        "versions": versions(),
        "environment": KEEP_MEMORY,
    }


if __name__ == "__main__":
    main()
