"""The folders recipes, configs and checkpoints that come with the package: the clone's own, or those in the wheel."""

from pathlib import Path

from clars.errors import UserError

CLONE, WHEEL = Path(__file__).parents[3], Path(__file__).parent / "shipped"


def folder(name: str) -> Path:
    """Return the folder of that name; in a clone it is the one at the top. It may be missing in a damaged install."""
    return (WHEEL if WHEEL.is_dir() else CLONE) / name


def require_own(path: Path) -> None:
    """Refuse to write results or checkpoints into the installed package, which the next update would take away.

    Raises:
        UserError: `path` lies there.
    """
    if path.resolve().is_relative_to(WHEEL.resolve()):
        raise UserError(
            f"{path} belongs to the installed package. Clone the repository, or set CLARS_RECIPES to a recipes "
            "folder of your own, with FOLDER/v1/NAME.yaml in it, and publish from there."
        )
