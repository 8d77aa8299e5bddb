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
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import matplotlib
import timm
import timm.optim
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.progress import track
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn import functional as F

import clars
from clars.results.figures import PALETTE, STYLE
from clars.results.files import replacing, write_json, write_text
from clars.results.provenance import device_name, versions

HERE = Path(__file__).parent
CLASSES = 1000
BATCH_NORM_MODELS = ("resnet50", "densenet121", "mobilenetv2_100")
ERROR_BATCH, ERROR_PIXELS = 4, 64  # small, because the definition costs a backward pass per layer and example
BATCH_NORM_BATCH, BATCH_NORM_PIXELS = 2, 64
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # keeps the line at 1 out of the numbers
RIGHT = 1e-9  # largest error in float64 that rounding explains
OURS, OTHERS = PALETTE[0], "#777777"

Norms = dict[str, Tensor]  # S by layer name: the sum over the examples of the norm of their part of the gradient
Step = Callable[[Tensor, Tensor], Norms]  # one training step on a batch


# The model


class Block(BasicBlock):
    """timm's block without its in-place addition, which the backward hooks of Opacus and BackPACK do not survive."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(inner)) + shortcut)


def group_norm(channels: int, **kwargs) -> nn.GroupNorm:
    """Return torch's own class: Opacus and BackPACK know layers by their exact class, and timm has a subclass."""
    return nn.GroupNorm(32, channels, **kwargs)


def relu(inplace: bool = False) -> nn.ReLU:
    """Return a ReLU that is not in place, whatever is asked for."""
    return nn.ReLU()


def peer_resnet18() -> nn.Module:
    """Return a ResNet-18 with GroupNorm and nothing in place; no layer starts at zero, so every norm is compared."""
    return ResNet(Block, (2, 2, 2, 2), num_classes=CLASSES, norm_layer=group_norm, act_layer=relu, zero_init_last=False)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)


def layer_sums(found: list[clars.Layer], squared: Callable[[nn.Parameter], Tensor]) -> Norms:
    """Return S per layer from squared norms [B] per parameter: the weight and bias of a layer are one vector."""
    return {layer.name: sum(map(squared, layer.parameters.values())).sqrt().sum() for layer in found}


# The tools. Each takes a model and returns its training step.


def without_norms(optimizer_of: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[nn.Module], Step]:
    def build(model: nn.Module) -> Step:
        optimizer = optimizer_of(model)

        def step(x: Tensor, y: Tensor) -> Norms:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            return {}

        return step

    return build


def timm_lars(model: nn.Module) -> torch.optim.Optimizer:
    return timm.optim.Lars(model.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)


def with_clars(estimator: str) -> Callable[[nn.Module], Step]:
    def build(model: nn.Module) -> Step:
        norms = clars.ExampleNorms(model, estimator=estimator)
        optimizer = clars.CLARS(model, 1e-3, norms=norms)

        def step(x: Tensor, y: Tensor) -> Norms:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sums = norms.sums()
            optimizer.step()
            return sums

        return step

    return build


def opacus_gradients(model: nn.Module, strict: bool = True) -> Step:
    from opacus import GradSampleModule

    found, optimizer = clars.layers(model), sgd(model)
    wrapped = GradSampleModule(model, strict=strict)

    def squared(parameter: nn.Parameter) -> Tensor:
        # grad_sample holds the gradients of the examples' own losses; the loss is their mean.
        each = parameter.grad_sample.flatten(1)
        return (each.norm(dim=1) / len(each)).square()

    def step(x: Tensor, y: Tensor) -> Norms:
        wrapped.zero_grad()  # the wrapper's, which drops grad_sample too
        F.cross_entropy(wrapped(x), y).backward()
        sums = layer_sums(found, squared)
        optimizer.step()
        return sums

    return step


def opacus_ghost(model: nn.Module) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    found, optimizer = clars.layers(model), sgd(model)
    wrapped = GradSampleModuleFastGradientClipping(model)

    def squared(parameter: nn.Parameter) -> Tensor:
        # Public is only the norm over all parameters together; the norms per parameter are kept here.
        return (parameter._norm_sample / len(parameter._norm_sample)).square()

    def step(x: Tensor, y: Tensor) -> Norms:
        wrapped.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        sums = layer_sums(found, squared)
        optimizer.step()
        return sums

    return step


def backpack_squares(model: nn.Module) -> Step:
    from backpack import backpack, extend

    found, optimizer, extension = clars.layers(model), sgd(model), batch_l2_grad()
    modules = {id(value): layer.module for layer in found for value in layer.parameters.values()}
    extend(model)

    def squared(parameter: nn.Parameter) -> Tensor:
        if not hasattr(parameter, "batch_l2"):  # BackPACK warns and goes on
            raise NotImplementedError(f"no rule for {type(modules[id(parameter)]).__name__}, which is left out.")
        return parameter.batch_l2

    def step(x: Tensor, y: Tensor) -> Norms:
        optimizer.zero_grad()
        with backpack(extension):
            F.cross_entropy(model(x), y).backward()
        sums = layer_sums(found, squared)
        optimizer.step()
        return sums

    return step


def batch_l2_grad():
    """Return BackPACK's BatchL2Grad, taught GroupNorm, which it has no rule for."""
    from backpack.extensions import BatchL2Grad
    from backpack.extensions.firstorder.base import FirstOrderModuleExtension

    class GroupNormSquares(FirstOrderModuleExtension):
        def __init__(self) -> None:
            super().__init__(params=["weight", "bias"])

        def weight(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            normalised = F.group_norm(module.input0, module.num_groups, eps=module.eps)
            return (g_out[0] * normalised).flatten(2).sum(2).square().sum(1)

        def bias(self, extension, module, g_inp, g_out, quantities) -> Tensor:
            return g_out[0].flatten(2).sum(2).square().sum(1)

    extension = BatchL2Grad()
    extension.set_module_extension(nn.GroupNorm, GroupNormSquares())
    return extension


def vmap_of_grad(model: nn.Module) -> Step:
    found, optimizer = clars.layers(model), sgd(model)
    parameters = dict(model.named_parameters())
    names = {id(value): name for name, value in parameters.items()}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, values, (image[None],)), label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def step(x: Tensor, y: Tensor) -> Norms:
        gradients = each({name: value.detach() for name, value in parameters.items()}, x, y)
        for name, value in parameters.items():
            value.grad = gradients[name].mean(0)
        sums = layer_sums(found, lambda value: (gradients[names[id(value)]].flatten(1).norm(dim=1) / len(x)).square())
        optimizer.step()
        return sums

    return step


@dataclass(frozen=True)
class Peer:
    """A tool: its label, how its training step is built, what it does, and whether it forms norms."""

    label: str
    build: Callable[[nn.Module], Step]
    note: str
    norms: bool = True


PEERS = {
    "sgd": Peer(
        "torch SGD", without_norms(sgd), "with Nesterov momentum and without norms; the baseline.", norms=False
    ),
    "lars": Peer("timm Lars", without_norms(timm_lars), "an optimizer without per-example norms.", norms=False),
    "clars": Peer("CLARS, exact", with_clars("exact"), "`clars.CLARS`, from the norm of every example."),
    "subset": Peer(
        "CLARS, subset",
        with_clars("subset"),
        '`clars.CLARS` with `ExampleNorms(model, estimator="subset")`: an estimate, and its error that of one draw.',
    ),
    "ghost": Peer(
        "Opacus, ghost norms",
        opacus_ghost,
        "`GradSampleModuleFastGradientClipping`, only the first of the two backward passes of its clipping: that one "
        "gives the norms and the gradient. It has ghost norms for linear layers and embeddings; of convolutions and "
        "GroupNorm it forms each example's gradient, a layer at a time. Norms per parameter are a private attribute.",
    ),
    "gradients": Peer(
        "Opacus, gradients",
        opacus_gradients,
        "`GradSampleModule`; the norms of `grad_sample`, which holds every example's gradient of every layer at once.",
    ),
    "backpack": Peer(
        "BackPACK",
        backpack_squares,
        "`BatchL2Grad`, which gives squared norms per parameter, added up per layer here. It has no rule for "
        "GroupNorm: one was added for this comparison. Its convolutions are a `torch.einsum` of four factors, ordered "
        "by opt-einsum where that is installed, as it is here (Opacus needs it); without, they are slower.",
    ),
    "vmap": Peer(
        "torch vmap(grad)",
        vmap_of_grad,
        "`torch.func`; the norms of every example's gradient, whose mean is the gradient. The loss itself is not kept.",
    ),
}


def out_of_place(model: nn.Module) -> nn.Module:
    """Switch off in-place modules. Operations in place in a forward, as in timm's residual blocks, have no switch."""
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


def without_running_statistics(model: nn.Module) -> nn.Module:
    return torch.func.replace_all_batch_norm_modules_(model)


# What a person would try next where a network is refused as it comes.
SECOND_TRIES = {
    "Opacus, gradients, strict=False": lambda model: opacus_gradients(model, strict=False),
    "BackPACK, modules not in place": lambda model: backpack_squares(out_of_place(model)),
    # The remedy that torch's documentation names. Each example is then normalised by its own statistics.
    "torch vmap(grad), no running statistics": lambda model: vmap_of_grad(without_running_statistics(model)),
}


# The measurements


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


# What is written


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def error_text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.0e}" if value else "0"


def threads_text(result: dict) -> str:
    numbers = [row["threads"] for row in result["time"]]
    return counted(numbers[0], "thread") if len(numbers) == 1 else f"{' and '.join(map(str, numbers))} threads"


def time_table(result: dict) -> str:
    timed = [row["peers"] for row in result["time"]]
    columns = [text for row in result["time"] for text in (f"{counted(row['threads'], 'thread')}, s", "over SGD")]
    rows = [
        f"| tool | {' | '.join(columns)} | error, float64 | off from exact CLARS, float32 |",
        f"|---|{'---:|' * (len(columns) + 2)}",
    ]
    for name, peer in PEERS.items():
        cells = [f"{peers[name]['median']:.2f} | {peers[name]['over_sgd']:.2f}" for peers in timed]
        if peer.norms:
            cells += [error_text(result["error"][name]), error_text(timed[0][name]["off_from_clars"])]
        else:
            cells += ["no norms"] * 2
        rows.append(f"| {peer.label} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def batch_norm_table(result: dict) -> str:
    rows = [f"| tool | {' | '.join(BATCH_NORM_MODELS)} |", "|---|" + "---|" * len(BATCH_NORM_MODELS)]
    for label, answers in result["batch_norm"].items():
        cells = [answer_text(answers[name]).replace("|", " ") for name in BATCH_NORM_MODELS]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def answer_text(found: dict) -> str:
    if "exception" in found:
        return f"{found['exception']}: {textwrap.shorten(found['message'], 165, placeholder=' ...')}"
    right = found["error"] is not None and found["error"] <= RIGHT
    return f"{'works' if right else 'answers'}, error {error_text(found['error'])}"


def markdown(result: dict) -> str:
    """Return the tables of a result as Markdown."""
    made = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    notes = "".join(f"- {peer.label}: {peer.note}\n" for peer in PEERS.values())
    return (
        "# Per-example gradient norms, tool by tool\n\n"
        f"Measured on {result['device']}, {counted(result['cores'], 'core')}, with {threads_text(result)}. {made}.\n\n"
        f"Regenerate with `{result['command']}`, after `pip install -e '.[bench]'`.\n\n"
        "## What a training step costs\n\n"
        f"ResNet-18 with GroupNorm and nothing in place, {CLASSES} classes, batch {result['batch']} at "
        f"{result['pixels']} px. A step is forward, cross entropy, backward, the sum over the examples of each layer's "
        "gradient norms (weight and bias together), and the optimizer's step; the median of "
        f"{counted(result['rounds'], 'interleaved round')}. The errors are the largest of any layer. In float64 they "
        f"are against `clars.oracle.mask_norms`, on {ERROR_BATCH} images of {ERROR_PIXELS} px; in float32 "
        "against exact CLARS on the batch that is timed. There 1e-4 is what torch's float32 `norm` of a gradient of "
        "millions of numbers is off by, not a tool's rule.\n\n"
        f"{time_table(result)}\n"
        "![Time over SGD](peers.png)\n\n"
        f"{notes}\n"
        "## What they answer to BatchNorm\n\n"
        f"timm's networks as they come, in training mode, {BATCH_NORM_BATCH} images of {BATCH_NORM_PIXELS} px, "
        f"float64. `works`: the largest error of any layer against `clars.oracle.mask_norms` is at most {RIGHT:.0e}; "
        "`answers`: numbers, but further off. What an example's gradient means there is in docs/batchnorm.md.\n\n"
        f"{batch_norm_table(result)}"
    )


def figure(result: dict, path: Path) -> None:
    """Draw the time over SGD, a bar per tool and number of threads, the cheapest on top."""
    runs = result["time"]
    names = sorted((name for name in runs[0]["peers"] if name != "sgd"), key=lambda n: runs[0]["peers"][n]["over_sgd"])
    height = 0.8 / len(runs)
    with matplotlib.rc_context(STYLE), replacing(path) as temporary:
        canvas = Figure(figsize=(8, 1.5 + len(names) * (0.2 + 0.22 * len(runs))), layout="constrained")
        axes = canvas.add_subplot(title="What per-example gradient norms cost, tool by tool")
        for turn, row in enumerate(runs):
            ratios = [row["peers"][name]["over_sgd"] for name in names]
            places = [place + (turn - (len(runs) - 1) / 2) * height for place in range(len(names))]
            colours = [shade(OURS if name in ("clars", "subset") else OTHERS, turn) for name in names]
            bars = axes.barh(places, ratios, 0.92 * height, color=colours)
            axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=4, fontsize=9, bbox=LABEL)
        axes.axvline(1, color="#222222", linewidth=1.2, linestyle="--")
        labels = [PEERS[name].label + ("" if PEERS[name].norms else " (no norms)") for name in names]
        axes.set_yticks(range(len(names)), labels)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.1, y=0.02)
        axes.set_xlabel(
            f"time of a step over torch's SGD; ResNet-18 with GroupNorm, batch {result['batch']}, {result['pixels']} px"
        )
        patches = [
            Patch(color=shade(OTHERS, turn), label=counted(row["threads"], "thread")) for turn, row in enumerate(runs)
        ]
        axes.legend(handles=patches, loc="upper right")  # the long bars are below
        canvas.savefig(temporary, dpi=150)


def shade(colour: str, turn: int) -> tuple[float, ...]:
    """Return a colour that is lighter at every turn."""
    keep = 0.6**turn
    return tuple(keep * part + 1 - keep for part in to_rgb(colour))


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
