"""The `clars` command."""

import sys
from typing import Annotated

import typer

from clars.lab import terminal
from clars.lab.commands import checkpoints, noise, norms, recipes, run, runs, tables
from clars.lab.commands.settings import WithSettings
from clars.lab.launching import exits

app = typer.Typer(
    help="Large-batch training without warmup: recipes, runs, tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
WITH_SETTINGS = (run.show, run.run, tables.tune, noise.noise)  # that take a recipe's settings as KEY=VALUE

# Imports of a command's own stand in the command, after what a mistake in its words is found by: help, lists and
# messages need neither torch nor matplotlib.
app.add_typer(recipes.app, name="recipes")
for command in (run.show, run.run, tables.table, tables.tune, noise.noise):
    app.command(cls=WithSettings if command in WITH_SETTINGS else None)(command)
app.add_typer(runs.app, name="runs")
app.add_typer(checkpoints.app, name="checkpoints")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        terminal.say(f"clars {version('clars')}")
        raise typer.Exit


@app.callback()
def every(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Large-batch training without warmup: recipes, runs, tables."""


@app.command()
def doctor() -> None:
    """Say what this machine has and which recipes it can run.

    \b
    Example:
      clars doctor
    """
    from clars.lab.doctor import report

    for part in report():
        terminal.console().print(part)


app.add_typer(norms.app, name="norms")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; mistakes of the user end in one message and exit code 2."""
    terminal.prepare()
    sys.exit(exits.guard(lambda: app(arguments)))
