"""Doors from the library to the lab, which needs the extra [recipes]: opened at first use, shut with a message."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line answers without torch
    from pathlib import Path

    from torch import nn

REMEDY = "It belongs to what trains and publishes recipes: pip install 'clars[recipes]'."


def lab(module: str, what: str) -> ModuleType:
    """Import a module of the lab for `what` a user asked for.

    Raises:
        ImportError: a package that the extra brings is missing; the message names it and the remedy.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "clars":
            raise
        raise ImportError(f"{what} needs {error.name}, which is not installed. {REMEDY}", name=error.name) from error


def load(name: "str | Path") -> "nn.Module":
    """Return the network of a released checkpoint, in evaluation mode, on the CPU.

    Everything in the folder is checked first, and nothing in it is unpickled. The network carries timm's
    `pretrained_cfg`, from which `timm.data.resolve_model_data_config` tells how images are to be prepared.

    Args:
        name: a name that `clars checkpoints list` shows, pulled where it is not on this machine; a folder; or
            ORG/NAME, perhaps with @REVISION, of the Hub.

    Raises:
        ImportError: the extra [recipes] is not installed.
        CheckpointError: there is no such checkpoint, it cannot be reached, or it is not what it says.
    """
    return lab("clars.lab.checkpoints.pull", "clars.load").read(name).network()


def push_to_hub(run: "str | Path", repo: str, *, allow_dirty: bool = False) -> str:
    """Upload a finished run of a recipe to the Hub: weights, card, configuration for timm, record and recipe.

    The run is measured again first. The repository is created unless it is there. Whoever has the name loads it by
    `clars.load(repo)`, or by `timm.create_model(f"hf-hub:{repo}", pretrained=True)`.

    Args:
        run: its folder, with run.json in it.
        repo: ORG/NAME.
        allow_dirty: take a run of a tree with changes, or outside of git.

    Returns:
        The address hf://ORG/NAME@COMMIT.

    Raises:
        ImportError: the extra [recipes] is not installed.
        CheckpointError: the run is none to be published, does not reach its accuracy again, or the Hub refuses.
        DataError: the data of the recipe are not on this machine.
    """
    from pathlib import Path

    publish = lab("clars.lab.checkpoints.publish", "clars.push_to_hub")
    return publish.push(Path(run), repo, allow_dirty=allow_dirty)


def command() -> None:
    """Run the command line `clars`."""
    try:
        cli = lab("clars.lab.cli", "The command line")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    cli.main()
