"""`clars show` and `clars run`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clars.lab.commands.options import Launch, Overrides, Overwrite, Precision, Recipe
from clars.lab.seeds import LARGEST
from clars.lab.terminal import say

if TYPE_CHECKING:
    from clars.lab.recipes.load import Resolved


def show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with all its settings, the defaults and overrides included.

    \b
    Example:
      clars show quickstart/clars-512 batch_size=256
    """
    from clars.lab.recipes.load import load
    from clars.lab.recipes.writing import dump

    resolved = load(recipe, overrides or ())
    say(f"# {resolved.name}, {resolved.version}: {resolved.path}")
    base = resolved.recipe.base
    say(f"# sha256 of {'the file' if base is None else f'its settings with those of {base}'}: {resolved.sha256}")
    say(f"# overrides: {' '.join(resolved.overrides) or 'none'}")
    say(f"# peak rate: {resolved.peak_rate:g}")
    say(dump(resolved.recipe.model_dump()).rstrip())


def run(
    recipe: Recipe,
    overrides: Overrides = None,
    seed: Annotated[
        list[int] | None, typer.Option(min=0, max=LARGEST, help="may be given several times; 0 by default")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs; runs/FOLDER by default, runs/changed/FOLDER with changes")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="NAME", help="begin with the weights of a checkpoint; the same as init=NAME")
    ] = None,
    launch: Launch = "auto",
    mixed_precision: Precision = None,
    overwrite: Overwrite = False,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="examples per process and pass")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="save the state between epochs as well")
    ] = None,
    noise_scale: Annotated[
        int | None,
        typer.Option(min=0, metavar="STEPS", help="note the gradient noise scale every N steps; 0: about 100 times"),
    ] = None,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="capture the step once on a GPU and replay it: no time on the host")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="give up on a process that does not answer; 600")
    ] = None,
    log_with: Annotated[str | None, typer.Option(help="a tracker that accelerate knows, such as tensorboard")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and run nothing")] = False,
) -> None:
    """Train a recipe, through `accelerate launch`.

    \b
    Examples:
      clars run quickstart/clars-512 epochs=2
      clars run warmup/resnet8 batch_size=512 schedule.base_rate=256 --seed 0 --seed 1
      clars run imagenet/resnet50 --dry-run --launch ddp
    """
    from clars.lab.launching import launch as launcher
    from clars.lab.recipes.load import load

    resolved = load(recipe, [*(overrides or ()), *([f"init={init}"] if init else ())])
    batch, group = resolved.recipe.batch_size, resolved.recipe.optimizer.together
    config = launcher.find_config(launch, [batch], [group])
    if dry_run:
        _forecast(resolved, launcher.processes(config), micro_batch, config)
        return
    arguments = [resolved.full_name, *resolved.overrides]
    arguments += [f"--seed={number}" for number in seed or [0]]
    arguments += ["--out", str(out)] if out else []
    arguments += ["--overwrite"] if overwrite else []
    arguments += ["--mixed-precision", mixed_precision] if mixed_precision else []
    arguments += ["--micro-batch", str(micro_batch)] if micro_batch else []
    arguments += ["--checkpoint-every", str(checkpoint_every)] if checkpoint_every else []
    arguments += ["--noise-scale", str(noise_scale)] if noise_scale is not None else []
    arguments += ["--cuda-graph"] if cuda_graph else []
    arguments += ["--timeout", str(timeout)] if timeout else []
    arguments += ["--log-with", log_with] if log_with else []
    raise typer.Exit(launcher.launch(arguments, config))


def _forecast(resolved: "Resolved", processes: int | str, micro_batch: int | None, config: Path) -> None:
    from rich.table import Table

    from clars.lab import terminal
    from clars.lab.training.forecast import forecast

    table = Table(box=None, show_header=False, pad_edge=False)
    for subject, text in (("launch", str(config)), *forecast(resolved, processes, micro_batch)):
        table.add_row(terminal.cell(subject), terminal.cell(text))
    terminal.console().print(table)
