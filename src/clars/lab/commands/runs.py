"""`clars runs ...`"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clars.lab import terminal
from clars.lab.commands.options import Figures
from clars.lab.tables.kinds import KINDS
from clars.lab.terminal import say

if TYPE_CHECKING:
    from clars.lab.runs.browse import Comparison

app = typer.Typer(help="List finished runs, compare two of them, or draw them.", rich_markup_mode=None)

Which = Annotated[
    Path, typer.Argument(help="the folder of a run, or that of its seeds, such as runs/quickstart/clars-512")
]


# Imports of a command's own stand in the command, as in clars.lab.cli.
@app.command("list")
def listed(folder: Annotated[Path, typer.Argument(help="where to look")] = Path("runs")) -> None:
    """List the runs below a folder: where, what, and what came of it.

    \b
    Examples:
      clars runs list
      clars runs list runs/warmup
    """
    from rich import box
    from rich.table import Table

    from clars.lab.runs import browse

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("method", "batch", "epochs", "top-1, %", "seconds", "status"):
        table.add_column(name, justify="left" if name in ("method", "status") else "right", no_wrap=True)
    wrong, count = [], 0
    for path, run, problem in browse.below(folder):
        if run is None:
            wrong.append(problem)
            continue
        record, count = run.record, count + 1
        top1 = "" if record.final.top1 is None else f"{record.final.top1:.2f}"
        numbers = (str(record.global_batch_size), str(record.epochs), top1, f"{record.wall_seconds:.0f}")
        method = str(record.optimizer.get("name", ""))
        place = path.relative_to(folder) if path != folder else path
        table.add_row(*map(terminal.cell, (place, method, *numbers, record.status)))
    if count:
        terminal.console().print(table)
    else:
        say(f"{folder} holds no runs. {browse.NOTHING}")
    for problem in wrong:
        terminal.say(f"not listed: {problem}")


@app.command()
def compare(first: Which, second: Which) -> None:
    """Show what two runs differ in, and what came of each; of several seeds the mean, and the gain seed by seed.

    \b
    Example:
      clars runs compare runs/quickstart/lars-512 runs/quickstart/clars-512
    """
    from clars.lab.runs import browse

    found = browse.compare(browse.seeds(first), browse.seeds(second))
    for title, lines in (("What differs", found.settings), ("What came of it", found.numbers)):
        _print(title, lines, (str(first), str(second)))
    say(_gain(found))


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs, or those of their seeds")],
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="the picture; runs.png by default")] = None,
    figures: Figures = None,
) -> None:
    """Draw accuracy and training loss of runs over their epochs.

    \b
    Examples:
      clars runs plot runs/quickstart/lars-512 runs/quickstart/clars-512 --to quickstart.png
      clars runs plot runs/quickstart/clars-64 runs/quickstart/clars-512 --figures svg
    """
    kinds = [figures] if figures else KINDS
    to = to or Path(f"runs.{kinds[0]}")
    if to.suffix.lower().removeprefix(".") not in kinds:
        raise typer.BadParameter(f"{to} is no {', '.join(f'.{kind}' for kind in kinds)} file", param_hint="--to")

    from clars.lab.runs import browse
    from clars.lab.tables.figures.several import figure

    figure({str(path): browse.seeds(path) for path in runs}, to)
    say(f"wrote {to}")


def _print(title: str, lines: list[tuple[str, str, str]], names: tuple[str, str]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", *names):
        table.add_column(terminal.cell(name), overflow="fold")
    for line in lines or [("nothing", "", "")]:
        table.add_row(*map(terminal.cell, line))
    terminal.console().print(table)


def _gain(found: "Comparison") -> str:
    import statistics

    from clars.lab.tables.summary import interval

    if not found.gains:
        return "No seed has finished in both, so there is no difference to state."
    mean, half = statistics.fmean(found.gains), interval(found.gains)
    width = "" if half is None else f" ± {half:.2f} (95 % interval)"
    seeds = terminal.plural(len(found.gains), "seed")
    return f"Second minus first, top-1: {mean:+.2f}{width} points over {seeds} that both have."
