"""The `clars` command."""

import sys

import typer

from clars.lab import terminal
from clars.lab.commands import checkpoints, noise, norms, recipes, run, tables
from clars.lab.launching import exits

app = typer.Typer(
    help="Large-batch training without warmup: recipes, runs, tables.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Imports of a command's own stand in the command, after what a mistake in its words is found by: help, lists and
# messages need neither torch nor matplotlib.
app.add_typer(recipes.app, name="recipes")
for command in (run.show, run.run, tables.table, tables.tune, noise.noise):
    app.command()(command)
app.add_typer(checkpoints.app, name="checkpoints")


@app.command()
def doctor() -> None:
    """Say what this machine has and which recipes it can run."""
    from clars.lab.doctor import report

    for part in report():
        terminal.console().print(part)


app.add_typer(norms.app, name="norms")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; mistakes of the user end in one message and exit code 2."""
    terminal.prepare()
    sys.exit(exits.guard(lambda: app(arguments)))
