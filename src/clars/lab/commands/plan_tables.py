"""What `clars norms plan` prints: the choices of methods, and the layers that are refused."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from clars.norms.plan import Choice


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
        sizes = (choice.sizes.positions, choice.sizes.inputs, choice.sizes.outputs, choice.sizes.groups)
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
