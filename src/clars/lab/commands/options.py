"""Arguments and options that several commands have."""

from typing import Annotated

import typer

from clars.lab.launching.single_process import PRECISIONS
from clars.lab.seeds import problem
from clars.lab.tables.kinds import KINDS


def _known(name: str) -> str:
    """Refuse an unknown configuration before anything is done."""
    from clars.lab.launching import launch

    if name != launch.AUTO:
        launch.find_config(name)
    return name


def _precision(name: str | None) -> str | None:
    if name not in (None, *PRECISIONS):
        raise typer.BadParameter(f"{name!r} is none of {', '.join(PRECISIONS)}")
    return name


def _kind(name: str | None) -> str | None:
    if name not in (None, *KINDS):
        raise typer.BadParameter(f"{name!r} is none of {', '.join(KINDS)}")
    return name


Recipe = Annotated[str, typer.Argument(help="folder/name, folder/name@v1, or a .yaml file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="changes to the recipe")]
Folder = Annotated[str, typer.Argument(help="a recipe folder with a table, such as quickstart")]
TierName = Annotated[str, typer.Option("--tier", help="lite, for a plain machine, medium, for a GPU, or full")]
Launch = Annotated[
    str,
    typer.Option(
        callback=_known,
        help="a name in configs/accelerate, or an accelerate .yaml file; auto takes the GPUs that are there",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="|".join(PRECISIONS), callback=_precision, help="what the network computes in; no by default"),
]
Parallel = Annotated[
    int | None, typer.Option(min=1, help="launches at once; on processors, as many as there are cores for, at most 8")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace runs that are there")]
Publish = Annotated[bool, typer.Option("--publish", help="write into the results folder beside the recipes as well")]

Figures = Annotated[
    str | None,
    typer.Option("--figures", metavar="|".join(KINDS), callback=_kind, help="the kind of the pictures; png by default"),
]


def seeds(text: str | None) -> list[int] | None:
    """Return the seeds of an option such as 0,1,2; None where it is not given."""
    found = numbers(text, "--seeds")
    if wrong := [seed for seed in found or () if problem(seed)]:
        raise typer.BadParameter(problem(wrong[0]), param_hint="--seeds")
    return found


def numbers(text: str | None, option: str, kind: type = int) -> list | None:
    """Return the numbers of an option such as 1,2,4; None where it is not given."""
    try:
        return None if text is None else [kind(number) for number in text.split(",")]
    except ValueError:
        words = "whole numbers such as 0,1,2" if kind is int else "numbers such as 0.5,1,2"
        raise typer.BadParameter(f"{text!r} is no list of {words}", param_hint=option) from None
