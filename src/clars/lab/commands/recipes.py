"""`clars recipes ...`"""

from pathlib import Path
from typing import Annotated

import typer

from clars.lab.terminal import say

app = typer.Typer(help="List the recipes, or copy one to change it.", rich_markup_mode=None)


# Imports of a command's own stand in the command, as in clars.lab.cli.
@app.callback(invoke_without_command=True)
def listed(
    context: typer.Context,
    write: Annotated[bool, typer.Option("--write", help="write the overview of all tables, recipes/README.md")] = False,
) -> None:
    """List the recipes, or copy one to change it.

    \b
    Examples:
      clars recipes
      clars recipes copy quickstart/clars-512
    """
    from clars.errors import RecipeError
    from clars.lab.recipes import load, registry

    if context.invoked_subcommand:
        return
    if write:
        from clars.lab.tables.overview import write_overview

        say(f"wrote {write_overview()}")
        return
    for name in registry.names():
        try:
            description = load.load(name).recipe.description
        except RecipeError as error:
            description = f"(cannot be used: {error})"
        say(f"{name:40} {' '.join(registry.versions(name)):6} {description}")


@app.command()
def copy(
    recipe: Annotated[str, typer.Argument(help="folder/name or folder/name@v1")],
    to: Annotated[Path | None, typer.Option(help="the new file; NAME.yaml in this folder by default")] = None,
) -> None:
    """Copy a recipe to a file of your own, to change and to run: `clars run NAME.yaml`.

    \b
    Example:
      clars recipes copy quickstart/clars-512 --to mine.yaml
    """
    from clars.lab.recipes.registry import copy as copy_recipe

    say(f"wrote {copy_recipe(recipe, to)}")
