"""Cost of a training step under each strategy: CLARS and LARS against torch's SGD, on two processes.

    python benchmarks/sharding_time.py

The methods take turns within each process, each with its own copy of the network under the strategy, and the median
over the rounds counts, of the slower process. "SGD" has one parameter group per weight-decay class, as is usual; under
ZeRO, CLARS and LARS have theirs joined by `merge_groups`, as recipes do. "A group per layer" is without that, so that
what their number costs ZeRO can be told from what the norms cost. Beside the whole step stands the time from the end of
the backward pass to its end. Needs deepspeed for the ZeRO rows. Writes sharding_time.json and sharding_time.md beside
this file, or to the folder given by --out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from rich.progress import track
from step_time import KEEP_MEMORY, machine
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import clars
from clars.lab.files import write_json, write_text

HERE = Path(__file__).parent
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
METHODS = {
    "sgd": "SGD",
    "lars": "LARS",
    "clars": "CLARS",
    "sgd-groups": "SGD, a group per layer",
    "clars-groups": "CLARS, a group per layer",
}
SETTINGS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}


def optimizer(method: str, model: nn.Module) -> torch.optim.Optimizer:
    """Return the method's optimizer; SGD decays no vectors."""
    layerwise = {"lars": clars.LARS, "clars": clars.CLARS, "clars-groups": clars.CLARS}
    if method in layerwise:
        return layerwise[method](model, **SETTINGS)
    if method == "sgd-groups":
        groups = [{"params": list(layer.parameters.values())} for layer in clars.layers(model)]
    else:
        vectors = [p for p in model.parameters() if p.dim() == 1]
        matrices = [p for p in model.parameters() if p.dim() > 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, **SETTINGS, nesterov=True)


def prepare(strategy: str, method: str, model: nn.Module, batch: int) -> tuple[nn.Module, Callable, Callable]:
    """Return the model under the strategy, its backward pass, and its step."""
    if strategy == "fsdp2":
        for block in [*model.layer1, *model.layer2, *model.layer3, *model.layer4, model]:
            fully_shard(block)
    stepping = optimizer(method, model)
    if strategy.startswith("zero"):
        import deepspeed

        if method in ("lars", "clars"):
            stepping.merge_groups()
        config = {
            "train_micro_batch_size_per_gpu": batch,
            "zero_optimization": {"stage": int(strategy[-1])},
            "zero_allow_untested_optimizer": True,
        }
        engine, outer, *_ = deepspeed.initialize(model=model, optimizer=stepping, config=config)
        bind(stepping, outer, engine)
        return engine, engine.backward, engine.step
    wrapped = DistributedDataParallel(model) if strategy == "ddp" else model
    bind(stepping, stepping, wrapped)

    def step() -> None:
        stepping.step()
        stepping.zero_grad()

    return wrapped, torch.Tensor.backward, step


def bind(own: torch.optim.Optimizer, outer: object, model: nn.Module) -> None:
    if isinstance(own, (clars.CLARS, clars.LARS)):
        clars.bind(outer, model)


def measure(strategy: str, name: str, batch: int, pixels: int, rounds: int) -> dict[str, list[float]]:
    """Return the median seconds of a whole step and of its part after the backward pass, by method."""
    torch.set_num_threads(1)
    x, y = torch.randn(batch, 3, pixels, pixels), torch.randint(1000, (batch,))
    prepared = {}
    for method in METHODS:
        torch.manual_seed(0)
        prepared[method] = prepare(strategy, method, timm.create_model(name, num_classes=1000), batch)
    taken: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, (model, backward, step) in prepared.items():
            distributed.barrier()
            began = time.perf_counter()
            backward(F.cross_entropy(model(x), y))
            between = time.perf_counter()
            step()
            ended = torch.tensor([time.perf_counter() - began, time.perf_counter() - between])
            distributed.all_reduce(ended, distributed.ReduceOp.MAX)
            if turn:  # the first round warms up
                taken[method].append(tuple(ended.tolist()))
    return {method: [statistics.median(part) for part in zip(*rows)] for method, rows in taken.items()}


def in_processes(strategy: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Measure in processes of their own, started as torchrun starts them."""
    size = [str(word) for key in ("model", "batch", "pixels", "rounds") for word in (f"--{key}", getattr(options, key))]
    with tempfile.NamedTemporaryFile("r") as result:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(options.processes), __file__, "--measure", strategy, result.name]
        environment = os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *size], check=True, env=environment, stdout=subprocess.DEVNULL)
        return json.load(result)


def markdown(result: dict) -> str:
    """Return the table as Markdown."""
    lines = [
        f"Seconds of a training step with SGD in one parameter group per weight-decay class, and the time of the other "
        f"methods over it; in brackets the same for the part after the backward pass. {result['model']}, "
        f"{result['pixels']} px, batch {result['batch']} on each of {result['processes']} processes with one thread, "
        f"gloo; medians of {result['rounds']} interleaved rounds. Measured on {result['device']}. "
        f"Regenerate with `{result['command']}`.",
        "",
        "| strategy | " + " | ".join(METHODS.values()) + " |",
        "|---|" + "---|" * len(METHODS),
    ]
    for strategy, taken in result["seconds"].items():
        whole, part = taken["sgd"]
        cells = [f"{whole:.2f} ({part:.3f})"]
        cells += [f"{taken[m][0] / whole:.2f} ({taken[m][1] / part:.2f})" for m in METHODS if m != "sgd"]
        lines.append(f"| {strategy} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--measure", nargs=2, metavar=("STRATEGY", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = {key: getattr(options, key) for key in ("model", "batch", "pixels", "rounds")}
    if options.measure:
        strategy, path = options.measure
        distributed.init_process_group("gloo")
        found = measure(strategy, size["model"], size["batch"], size["pixels"], size["rounds"])
        if distributed.get_rank() == 0:
            Path(path).write_text(json.dumps(found))
        distributed.destroy_process_group()
        return
    taken = {strategy: in_processes(strategy, options) for strategy in track(options.strategies, "strategies")}
    result = machine(torch.device("cpu"), "sharding_time.py") | size
    result |= {"processes": options.processes, "seconds": taken}
    write_json(options.out / "sharding_time.json", result)
    write_text(options.out / "sharding_time.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
