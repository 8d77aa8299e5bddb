"""Which exact method each layer of a model uses, and why: what `clars norms plan` prints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from clars.norms.problem import Problem, chunks, transient
from clars.norms.strategy import timed
from clars.norms.tracker import ExampleNorms


@dataclass(frozen=True)
class Choice:
    """The method chosen for one layer's weight.

    Attributes:
        pieces: how many pieces the batch is worked off in.
        bytes: what a piece takes beside input, output gradient and gradient.
        seconds: of each method that applies, where they were timed.
    """

    layer: str
    problem: Problem
    method: str
    pieces: int
    bytes: int
    seconds: dict[str, float]


def plan(
    model: nn.Module, loss_fn: Callable[..., Tensor], *batch: Tensor, memory: int | None = None, time: bool = False
) -> tuple[list[Choice], dict[str, str]]:
    """Return the choices of one backward pass, and which layers are refused, with what they do that has no exact norm.

    Both are in the order of the layers; convolutions and linear layers make a choice.

    Args:
        model: any model that can be tracked; its gradients are cleared, and a tracker it has is replaced.
        loss_fn: called as `loss_fn(model, *batch)`, returns a scalar.
        batch: passed on to `loss_fn`.
        memory: as for `ExampleNorms`.
        time: time every method that applies, and choose by that.
    """
    choices: dict[str, Choice] = {}

    def note(layer: str, problem: Problem, methods: dict, tensors: tuple, whole: Callable, name: str) -> None:
        seconds = timed(problem, methods, tensors, whole, memory) if time else {}
        pieces = chunks(problem, name, memory)
        each = pieces[0].stop - pieces[0].start
        choices[layer] = Choice(layer, problem, name, len(pieces), each * transient(problem, name), seconds)

    norms = ExampleNorms(model, memory=memory, timed=time)
    norms.estimator.report_to(note)
    refused = norms.gather_refusals()
    try:
        loss_fn(model, *batch).backward()
    finally:
        norms.remove()
        model.zero_grad()
    made = [choices[layer.name] for layer in norms.layers if layer.name in choices and layer.name not in refused]
    return made, {layer.name: refused[layer.name] for layer in norms.layers if layer.name in refused}


def table(choices: Sequence[Choice]) -> Table:
    """Return the choices as a table for the terminal."""
    found = Table(box=box.SIMPLE, caption="T positions, D inputs per position, P outputs", caption_justify="left")
    found.add_column("layer", overflow="fold")
    for heading in ("T", "D", "P", "groups"):
        found.add_column(heading, justify="right")
    found.add_column("method")
    measured = any(choice.seconds for choice in choices)
    for heading in ("ms by method",) if measured else ("pieces", "MiB"):
        found.add_column(heading, justify="left" if measured else "right")
    for choice in choices:
        problem = choice.problem
        sizes = (problem.positions, problem.inputs, problem.outputs, problem.groups)
        work = (_times(choice.seconds),) if measured else (choice.pieces, f"{choice.bytes / 2**20:.1f}")
        found.add_row(choice.layer, *map(str, (*sizes, choice.method, *work)))
    return found


def refusals(refused: Mapping[str, str]) -> Table:
    """Return the refused layers as a table for the terminal, those with one problem together."""
    alike: dict[str, list[str]] = {}
    for layer, problem in refused.items():
        alike.setdefault(problem, []).append(layer)
    found = Table(box=box.SIMPLE, title="No exact norms", title_justify="left")
    found.add_column("layers", overflow="fold")
    found.add_column("each", overflow="fold")
    for problem, layers in alike.items():
        found.add_row(Text("\n".join(layers)), Text(problem))
    return found


def _times(seconds: dict[str, float]) -> str:
    """Return the methods' times, the shortest first."""
    return ", ".join(f"{name} {time * 1e3:.2f}" for name, time in sorted(seconds.items(), key=lambda item: item[1]))
