"""What per-example gradient norms cost with each tool, side by side, and whether its numbers are right.

    python benchmarks/peers.py

Needs `pip install -e '.[bench]'`. Runs on the CPU, in three parts:

- time: a training step that forms the per-example gradient norms of every layer and moves the weights, over the same
  step with torch's SGD. The model is a ResNet-18 that every tool accepts; the tools take turns in one process, and the
  median over the rounds counts.
- error: the norms of the same model in float64 against the definition, `clars.oracle.mask_norms`.
- BatchNorm: what each tool answers to ordinary networks in training mode.

Writes peers.json, peers.md and peers.png beside this file, or to the folder given by --out.
"""

import argparse
import importlib
import math
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from peer_report import counted, figure, markdown
from peer_tools import (
    BATCH_NORM_BATCH,
    BATCH_NORM_MODELS,
    BATCH_NORM_PIXELS,
    CLASSES,
    ERROR_BATCH,
    ERROR_PIXELS,
    PEERS,
    SECOND_TRIES,
    Norms,
    Step,
    peer_resnet18,
)
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import clars
from clars.lab.files import write_json, write_text
from clars.lab.runs.provenance import device_name, versions

HERE = Path(__file__).parent


def images(batch: int, pixels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, pixels, pixels, generator=generator, dtype=dtype)
    return x, torch.randint(CLASSES, (batch,), generator=generator)


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a model whose weights are the same at every call."""
    torch.manual_seed(0)
    return make().to(dtype)


def largest_error(found: Norms, expected: Norms) -> float:
    """Return the largest relative error of a layer's S."""
    least = 1e-12 * max(map(float, expected.values()))  # layers behind one that starts at zero have no gradient
    errors = [abs(float(found[name]) - float(s)) / max(float(s), least) for name, s in expected.items()]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def timings(peers: list[str], threads: int, options: argparse.Namespace) -> dict[str, dict]:
    """Return, by peer, the median seconds of a step, and by how much its norms are off from those of exact CLARS."""
    torch.set_num_threads(threads)
    x, y = images(options.batch, options.pixels)
    steps = {name: PEERS[name].build(seeded(peer_resnet18)) for name in peers}
    norms = {name: step(x, y) for name, step in steps.items()}  # warms up; all begin with the same weights
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for _ in track(range(options.rounds), f"time, {counted(threads, 'thread')}"):
        for name, step in steps.items():
            began = time.perf_counter()
            step(x, y)
            taken[name].append(time.perf_counter() - began)
    sgd_seconds = statistics.median(taken["sgd"])
    return {
        name: {
            "seconds": taken[name],
            "median": statistics.median(taken[name]),
            "over_sgd": statistics.median(taken[name]) / sgd_seconds,
            "off_from_clars": finite(largest_error(norms[name], norms["clars"])) if PEERS[name].norms else None,
        }
        for name in peers
    }


def definition(model: nn.Module, x: Tensor, y: Tensor) -> Norms:
    return clars.oracle.mask_norms(model, lambda model, x, y: F.cross_entropy(model(x), y), x, y)


def errors(peers: list[str]) -> dict[str, float | None]:
    """Return, by peer, the largest error of a layer against the definition, in float64."""
    x, y = images(ERROR_BATCH, ERROR_PIXELS, torch.float64)
    expected = definition(seeded(peer_resnet18, torch.float64), x, y)
    return {
        name: finite(largest_error(PEERS[name].build(seeded(peer_resnet18, torch.float64))(x, y), expected))
        for name in track(peers, "error")
    }


def batch_norm_answers(peers: list[str]) -> dict[str, dict[str, dict]]:
    """Return, by label and model, the error against the definition in float64, or why there is no answer."""
    builds = {PEERS[name].label: PEERS[name].build for name in peers} | SECOND_TRIES
    x, y = images(BATCH_NORM_BATCH, BATCH_NORM_PIXELS, torch.float64)
    found: dict[str, dict[str, dict]] = {label: {} for label in builds}
    for name in track(BATCH_NORM_MODELS, "BatchNorm"):
        make = partial(timm.create_model, name, num_classes=CLASSES)
        expected = definition(seeded(make, torch.float64), x, y)
        for label, build in builds.items():
            found[label][name] = answer(build, seeded(make, torch.float64), x, y, expected)
    return found


def answer(build: Callable[[nn.Module], Step], model: nn.Module, x: Tensor, y: Tensor, expected: Norms) -> dict:
    try:
        return {"error": finite(largest_error(build(model)(x, y), expected))}
    except Exception as refusal:  # whatever a tool raises at a network is its answer
        return {"exception": type(refusal).__name__, "message": first_line(refusal)}


def first_line(error: Exception) -> str:
    """Return the first sentence of an error. Opacus raises a list of errors, one for each layer: its first."""
    first = error.args[0] if error.args else error
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return str(first).strip().split("\n")[0].split(". ")[0].rstrip(".")


def finite(value: float) -> float | None:
    """JSON knows no other numbers."""
    return value if math.isfinite(value) else None


def require_peers() -> None:
    """Leave with exit code 2 where a tool to compare with is not installed."""
    for name in ("opacus", "backpack"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as missing:
            print(f"{missing.name} is not installed: pip install -e '.[bench]'", file=sys.stderr)
            raise SystemExit(2) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    require_peers()
    for known in ("Full backward hook is firing", "Extension saving to batch_l2"):  # the table says what matters of it
        warnings.filterwarnings("ignore", known)
    peers = list(PEERS)
    with_norms = [name for name in peers if PEERS[name].norms]
    result = {
        "command": " ".join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "device": device_name(torch.device("cpu")),
        "cores": torch.multiprocessing.cpu_count(),
        "system": platform.platform(),
        "versions": versions() | {name: version(name) for name in ("opacus", "backpack-for-pytorch", "opt-einsum")},
        "batch": options.batch,
        "pixels": options.pixels,
        "rounds": options.rounds,
        "time": [{"threads": n, "peers": timings(peers, n, options)} for n in options.threads],
        "error": errors(with_norms),
        "batch_norm": batch_norm_answers(with_norms),
    }
    write_json(options.out / "peers.json", result)
    write_text(options.out / "peers.md", markdown(result))
    figure(result, options.out / "peers.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
