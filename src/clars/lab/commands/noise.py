"""`clars noise`"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clars.lab import terminal
from clars.lab.commands.options import Launch, Overrides, Overwrite, Precision, Recipe
from clars.lab.seeds import LARGEST
from clars.lab.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

    from clars.lab.recipes.load import Resolved
    from clars.lab.runs.noise import NoiseLine

POINTS = 10  # of the table


def _picture(path: Path | None) -> Path | None:
    """Refuse a figure of another kind before anything is done."""
    if path is not None and path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{path} is no .png file")
    return path


def noise(
    recipe: Recipe,
    overrides: Overrides = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs; runs/FOLDER by default, runs/changed/FOLDER with changes")
    ] = None,
    launch: Launch = "auto",
    mixed_precision: Precision = None,
    overwrite: Overwrite = False,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=_picture, help="write the figure to this .png file as well")
    ] = None,
) -> None:
    """Train or read a run, and draw its gradient noise scale over training.

    \b
    Example:
      clars noise quickstart/clars-64 --figure noise.png
    """
    from clars.lab.recipes.load import load

    resolved = load(recipe, overrides or ())

    from clars.lab import runs

    folder = runs.folder(out or runs.default_out(resolved), resolved.short_name, seed)
    code = _train(resolved, seed, folder, launch, overwrite, mixed_precision)

    from clars.lab.runs import layout
    from clars.lab.runs.noise import read
    from clars.lab.tables.figures.noise import figure as draw

    run = runs.read_folder(folder, seed)
    lines = read(run)
    terminal.console().print(table(lines, run.record.global_batch_size))
    for path in [folder / layout.NOISE_FIGURE, *([figure] if figure else [])]:
        draw(run, lines, path)
        say(f"wrote {path}")
    raise typer.Exit(code)


def table(lines: "list[NoiseLine]", batch: int) -> "Table":
    """Return about ten of the lines, evenly over training, as a table for the terminal."""
    from rich import box
    from rich.table import Table

    caption = "the batch at which noise and gradient are of one size; none: not to be told, or infinite"
    found = Table(box=box.SIMPLE, caption=caption, caption_justify="left")
    for heading in ("step", "noise scale, examples", "batch size"):
        found.add_column(heading, justify="right")
    count = min(POINTS, len(lines))
    for number in range(1, count + 1):
        line = lines[number * len(lines) // count - 1]
        scale = "none" if line.noise_scale is None else f"{line.noise_scale:,.4g}"
        found.add_row(f"{line.step:,}", scale, f"{batch:,}")
    return found


def _train(resolved: "Resolved", seed: int, folder: Path, launch: str, overwrite: bool, precision: str | None) -> int:
    """Train the run if it is not there, perhaps in a precision; return the exit code, or end here without a run."""
    from clars.lab.launching import exits
    from clars.lab.launching import launch as launcher
    from clars.lab.runs.jobs import Job, pending

    if not overwrite and not pending([Job(resolved, seed, folder)], precision):
        say(f"{folder} is there, and is read; --overwrite trains it anew")
        return exits.FINISHED
    arguments = [resolved.full_name, *resolved.overrides, f"--seed={seed}", "--out", str(folder.parents[1])]
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--mixed-precision", precision] if precision else []
    config = launcher.find_config(launch, [resolved.recipe.batch_size], [resolved.recipe.optimizer.together])
    code = launcher.launch([*arguments, "--noise-scale", "0"], config)
    if code not in (exits.FINISHED, exits.DIVERGED):
        raise typer.Exit(code)
    return code
