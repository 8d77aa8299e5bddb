"""Time that Python, torch and triton take on the host for a layer's norms, without a GPU.

    python benchmarks/host_time.py

The network is so small that there is next to nothing to compute: forty pointwise convolutions of 8 channels, each with
batch normalisation and ReLU, on four images of 4 by 4 pixels. What remains is the host's work, which bounds a step
where a fast device waits for a slow host. It is told per layer with a weight, beyond that with torch's SGD.

The layers go the way of processors, and the way of accelerators: there triton compiles the kernels for an H100 that is
not there, and everything up to its launcher runs (see no_device.py). SGD and CLARS take turns in one process and
thread. Each part of a step counts by its least processor time over the rounds; of several fresh processes the median
does. Writes host_time.json and host_time.md beside this file, or to the folder given by --out.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from step_time import in_fresh_process, machine
from torch import nn
from torch.nn import functional as F

import clars
from clars.lab.files import write_json, write_text

HERE = Path(__file__).parent
DEPTH, CHANNELS, BATCH, PIXELS = 40, 8, 4, 4
LAYERS = 2 * DEPTH + 1  # convolutions, batch normalisations, and the linear layer at the end
PARTS = ("zero_grad", "forward", "backward", "step")
WAYS = {
    "processor": "on processors, in C++",
    "accelerator": "on accelerators, layers' functions in C++",
    "accelerator, Python": "on accelerators, without C++ (CLARS_CPU_KERNELS=0)",
}


def go_as_accelerators_do() -> None:
    """Have layers on the processor measured by the kernels for accelerators, which are not run."""
    import no_device

    from clars.native import operators
    from clars.native.triton import compiling

    no_device.install(lambda *arguments: None)
    compiling.available = lambda device: True
    operators.ACCELERATED.add("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = []
    for _ in range(DEPTH):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * PIXELS**2, 10))


def parts(optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> list[Callable[[], object]]:
    """Return what makes up a training step, in order."""
    model = network()
    optimizer = optimizer(model)
    x, y = torch.randn(BATCH, CHANNELS, PIXELS, PIXELS), torch.randint(10, (BATCH,))
    losses = []

    def forward():
        losses[:] = [F.cross_entropy(model(x), y)]

    return [optimizer.zero_grad, forward, lambda: losses[0].backward(), optimizer.step]


def microseconds(rounds: int) -> dict[str, dict[str, float]]:
    """Return the least host time per layer of each part of a step, by optimizer."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # kernels that do not run leave any number, and some of these would slow others
    steps = {
        "sgd": parts(lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, foreach=True)),
        "clars": parts(lambda model: clars.CLARS(model, lr=1e-3)),
    }
    least = {name: dict.fromkeys(PARTS, float("inf")) for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            for part, run in zip(PARTS, step):
                began = time.process_time()
                run()
                if turn >= 3:  # the first rounds choose methods, compile and make buffers
                    least[name][part] = min(least[name][part], time.process_time() - began)
    return {name: {part: 1e6 * second / LAYERS for part, second in taken.items()} for name, taken in least.items()}


def beyond(taken: dict[str, dict[str, float]], wanted: tuple[str, ...]) -> float:
    """Return the microseconds of some parts of a step, those with SGD subtracted."""
    return sum(taken["clars"][part] - taken["sgd"][part] for part in wanted)


def markdown(result: dict) -> str:
    """Return the table as Markdown."""
    sgd = statistics.median(
        sum(taken["sgd"].values()) for processes in result["microseconds"].values() for taken in processes
    )
    lines = [
        f"Microseconds of host time per layer and step, beyond those with torch's SGD (in all {sgd:.0f}), on a network "
        f"of {LAYERS} layers that has next to nothing to compute: the least of {result['rounds']} interleaved rounds, "
        f"of {result['processes']} processes the median; of whole steps the range too. Measured on "
        f"{result['device']}, one thread, {result['cores']} cores. Regenerate with `{result['command']}`.",
        "",
        "Not counted: the driver's own launch of a kernel, and the device. Memory is a processor's, which comes by "
        "other ways than a GPU's. SGD's backward pass computes here what the rows of accelerators leave to kernels "
        "that do not run. That is little; their numbers are smaller by as much. The optimizer's step is in C++ but in "
        "the last row. On a GPU it is as in the last row. Host time on a machine with a GPU: not measured.",
        "",
        "| layers | " + " | ".join(PARTS) + " | whole step | range |",
        "|---|" + "---|" * (len(PARTS) + 2),
    ]
    for way, processes in result["microseconds"].items():
        cells = [statistics.median(beyond(taken, (part,)) for taken in processes) for part in PARTS]
        whole = sorted(beyond(taken, PARTS) for taken in processes)
        told = " | ".join(f"{cell:.0f}" for cell in (*cells, statistics.median(whole)))
        lines.append(f"| {WAYS[way]} | {told} | {whole[0]:.0f} to {whole[-1]:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.measure != "processor":
            go_as_accelerators_do()
        print(json.dumps(microseconds(options.rounds)))
        return
    taken: dict[str, list] = {way: [] for way in WAYS}
    for _ in range(options.processes):
        for way in WAYS:
            environment = {"CLARS_CPU_KERNELS": "0"} if way == "accelerator, Python" else {}
            arguments = (__file__, "--measure", way, "--rounds", options.rounds)
            taken[way].append(in_fresh_process(*arguments, environment=environment))
    result = machine(torch.device("cpu"), "host_time.py") | {
        "environment": {},
        "rounds": options.rounds,
        "processes": options.processes,
        "microseconds": taken,
    }
    write_json(options.out / "host_time.json", result)
    write_text(options.out / "host_time.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
