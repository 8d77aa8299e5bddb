"""`clars checkpoints ...`"""

from pathlib import Path
from typing import Annotated

import typer

from clars.errors import printable

app = typer.Typer(
    help="Published checkpoints: list, pull, verify, publish.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="a name that `clars checkpoints list` shows")]


def _say(line: object) -> None:
    typer.echo(printable(str(line)))


# Imports of a command's own stand in the command, as in clars.lab.cli.
@app.command("list")
def listed() -> None:
    """List the published checkpoints.

    \b
    Example:
      clars checkpoints list
    """
    from clars.lab.checkpoints import manifest, pull

    for name, (entry, _) in manifest.every().items():
        top1, pulled = entry.top1, entry.address is None or pull.place(name, entry).exists()
        where = "here" if pulled else entry.address
        seeds = f", mean {top1.mean:.2f} % over {top1.n} seeds" if top1.half_width is not None else ""
        what = f"{entry.architecture} on {top1.data} ({top1.split} split)"
        _say(f"{name:32} {top1.value:6.2f} %  {what}, {entry.recipe}@{entry.version}{seeds}; {where}")


@app.command()
def pull(
    name: Name, to: Annotated[Path | None, typer.Option(help="a new folder; the cache of clars by default")] = None
) -> None:
    """Get a checkpoint onto this machine, its files compared with the manifest, and print its folder.

    \b
    Example:
      clars checkpoints pull digits-resnet8-clars
    """
    from clars.lab.checkpoints import pull

    _say(pull.pull(name, to))


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="a name, or a folder")],
    no_data: Annotated[bool, typer.Option("--no-data", help="check the files only")] = False,
) -> None:
    """Check files, format and architecture of a checkpoint, then measure its accuracy again.

    \b
    Example:
      clars checkpoints verify digits-resnet8-clars
    """
    from clars.lab.checkpoints.verify import verify

    for line in verify(name, data=not no_data):
        _say(line)


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="the folder of a finished run, with run.json in it")],
    name: Annotated[str | None, typer.Option(help="DATA-NETWORK-METHOD by default")] = None,
    repo: Annotated[str | None, typer.Option(metavar="ORG/NAME", help="upload to this repository of the Hub")] = None,
    allow_dirty: Annotated[bool, typer.Option("--allow-dirty", help="take a run of a tree with changes")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="take the place of the checkpoint of that name")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check all, and write nothing")] = False,
) -> None:
    """Publish a run: measure it again, write its card, and add it to the manifest.

    \b
    Examples:
      clars checkpoints publish runs/quickstart/clars-512/seed0 --dry-run
      clars checkpoints publish runs/quickstart/clars-512/seed0 --name digits-mine --repo me/digits-mine
    """
    from clars.lab.checkpoints.publish import PublishOptions, publish

    publish(run, name, PublishOptions(repo, allow_dirty, replace, dry_run, tell=_say))
