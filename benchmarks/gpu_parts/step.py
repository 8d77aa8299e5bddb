"""Time of a training step by method: bfloat16 by autocast, channels together in memory, the methods taking turns."""

import gc
import statistics
import time
from collections.abc import Callable

import timm
import torch
from part import Part
from torch import nn
from torch.nn import functional as F

import clars
import clars.lab.models

# Batch and pixels. The first is also taken in a graph, profiled and compiled.
NETWORKS = {
    "resnet50": (256, 224),
    "mobilenetv2_100": (256, 224),
    "vit_small_patch16_224": (256, 224),
    "densenet121": (128, 224),
    "convnext_tiny": (128, 224),
}
TOYS = {"resnet8": (8, 16), "mobilenetv2_035": (8, 32)}
METHODS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True),
    "lars": lambda model: clars.LARS(model, 1e-3),
    "exact": lambda model: clars.CLARS(model, 1e-3),
    "group": lambda model: clars.CLARS(model, 1e-3, estimator="group", group=8),
    "subset": lambda model: clars.CLARS(model, 1e-3, estimator="subset", fraction=1 / 8),
}
IN_A_GRAPH = ("sgd", "lars", "exact", "group")
COMPILED = ("sgd", "exact")
ROUNDS, STEPS = 5, 3
TO_COMPILE = 100.0  # seconds that must be left
KERNELS = 15


class Step:
    """A network with its optimizer and batch, and one training step of it."""

    def __init__(self, part: Part, network: str, method: str, batch: int, pixels: int) -> None:
        torch.manual_seed(0)
        self.device = part.device
        size = {"img_size": pixels} if network.startswith("vit") else {}
        model = timm.create_model(network, num_classes=1000, **size)
        self.model = model.to(part.device, memory_format=torch.channels_last)
        self.optimizer = METHODS[method](self.model)
        x = torch.randn(batch, 3, pixels, pixels, device=part.device)
        self.x = x.contiguous(memory_format=torch.channels_last)
        self.y = torch.randint(1000, (batch,), device=part.device)
        self.take = self.plain

    def plain(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(self.device, torch.bfloat16):
            loss = F.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def __call__(self) -> torch.Tensor:
        return self.take(self.x, self.y)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def device_ms(step: Step) -> float:
    """Return the milliseconds of a step: by the device's own clock, or a processor's."""
    wait(step.device)
    if step.device == "cpu":
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        return (time.perf_counter() - began) * 1e3 / STEPS
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(STEPS):
        step()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / STEPS


def host_ms(step: Step) -> float | None:
    """Return the milliseconds until the last launch of one step has returned; of a processor there is no such time."""
    if step.device == "cpu":
        return None
    wait(step.device)
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e3


def first_step(step: Step) -> float:
    wait(step.device)
    began = time.perf_counter()
    step()
    wait(step.device)
    return time.perf_counter() - began


def peak_bytes(step: Step) -> int | None:
    """Return what a step takes beyond what lies there before it."""
    if step.device == "cpu":
        return None
    step.optimizer.zero_grad()
    wait(step.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    wait(step.device)
    return torch.cuda.max_memory_allocated() - before


def in_turns(steps: dict[str, Step], rounds: int) -> dict[str, dict]:
    """Return by method the medians of both times, and the peak memory; the methods take turns."""
    taken = {method: {"ms": [], "host_ms": []} for method in steps}
    for turn in range(rounds + 1):
        for method, step in steps.items():
            device, host = device_ms(step), host_ms(step)
            if turn:  # the first round warms up
                taken[method]["ms"].append(device)
                taken[method]["host_ms"].append(host)
    return {
        method: {
            "ms": statistics.median(each["ms"]),
            "range": [min(each["ms"]), max(each["ms"])],
            "host_ms": None if None in each["host_ms"] else statistics.median(each["host_ms"]),
        }
        for method, each in taken.items()
    }


def measure(part: Part, network: str, batch: int, pixels: int) -> dict[str, dict]:
    """Return by method what a step of a network takes; what goes wrong with one method is told in its place."""
    found: dict[str, dict] = {}
    steps: dict[str, Step] = {}
    for method in METHODS:
        try:
            step = Step(part, network, method, batch, pixels)
            found[method] = {"first_s": first_step(step), "peak_bytes": peak_bytes(step)}
            steps[method] = step
        except Exception as error:
            found[method] = {"problem": f"{type(error).__name__}: {str(error)[:300]}"}
    times = in_turns(steps, 2 if part.quick else ROUNDS)
    return {method: each | times.get(method, {}) for method, each in found.items()}


def in_a_graph(part: Part, network: str, batch: int, pixels: int) -> dict[str, dict]:
    """Return the same of steps that are replayed; one method after the other, as each graph keeps its memory."""
    found = part.result["graph"] = {}
    for method in IN_A_GRAPH if part.on_gpu else ():
        part.attempt(found, method, lambda method=method: _replayed(part, network, method, batch, pixels))
        release(part)
    return found


def _replayed(part: Part, network: str, method: str, batch: int, pixels: int) -> dict:
    step = Step(part, network, method, batch, pixels)
    step.take = clars.graphed(step.plain)
    first = sum(first_step(step) for _ in range(4))  # three before the one that is captured
    return in_turns({method: step}, ROUNDS)[method] | {"first_s": first}


def release(part: Part) -> None:
    """Give back the memory of what is not used any more; networks and their trackers refer to each other."""
    gc.collect()
    if part.on_gpu:
        torch.cuda.empty_cache()


def compiled(part: Part, network: str, batch: int, pixels: int) -> dict[str, dict]:
    """Return the same of compiled networks, as far as there is time."""
    if part.seconds_left < TO_COMPILE and not part.quick:
        return {}
    steps, first = {}, {}
    for method in COMPILED:
        steps[method] = step = Step(part, network, method, batch, pixels)
        step.model = torch.compile(step.model, backend="aot_eager" if part.quick else "inductor")
        first[method] = first_step(step)
    return {method: each | {"first_s": first[method]} for method, each in in_turns(steps, 2).items()}


def profile(part: Part, network: str, batch: int, pixels: int) -> dict[str, dict]:
    """Return the kernels with the most time on the device: of SGD, of CLARS, and of the difference; name, ms, calls."""
    own = {method: kernels(Step(part, network, method, batch, pixels)) for method in ("sgd", "exact")}
    none = (0.0, 0)
    extra = {
        name: tuple(a - b for a, b in zip(own["exact"].get(name, none), own["sgd"].get(name, none)))
        for name in own["sgd"] | own["exact"]
    }
    tables = own | {"exact over sgd": extra}
    longest = {
        title: [[name[:120], *each] for name, each in sorted(table.items(), key=lambda row: -row[1][0])[:KERNELS]]
        for title, table in tables.items()
    }
    return {"kernels": longest, "ms": {title: sum(ms for ms, _ in table.values()) for title, table in tables.items()}}


def kernels(step: Step) -> dict[str, tuple[float, int]]:
    """Return by name the milliseconds on the device, and the number of calls, in one step."""
    activity, field = torch.profiler.ProfilerActivity, "self_device_time_total"
    activities = [activity.CUDA] if step.device == "cuda" else [activity.CPU]
    if step.device == "cpu":
        field = "self_cpu_time_total"
    for _ in range(2):
        step()
    wait(step.device)
    with torch.profiler.profile(activities=activities) as seen:
        step()
        wait(step.device)
    rows = {row.key: (getattr(row, field) / 1e3, row.count) for row in seen.key_averages()}
    return {name: row for name, row in rows.items() if row[0] > 0}


def main() -> None:
    part = Part(__doc__)
    torch.backends.cudnn.benchmark = True
    networks = TOYS if part.quick else NETWORKS
    found = part.result = {"rounds": 2 if part.quick else ROUNDS, "steps": STEPS, "sizes": {}, "networks": {}}
    for number, (network, (batch, pixels)) in enumerate(networks.items()):
        found["sizes"][network] = [batch, pixels]
        size = (part, network, batch, pixels)
        part.attempt(found["networks"], network, lambda size=size: measure(*size))
        if number == 0:
            release(part)
            part.attempt(found, "graph", lambda size=size: in_a_graph(*size))
            part.attempt(found, "profile", lambda size=size: profile(*size))
        release(part)
    network, (batch, pixels) = next(iter(networks.items()))
    part.attempt(found, "compiled", lambda: compiled(part, network, batch, pixels))


if __name__ == "__main__":
    main()
