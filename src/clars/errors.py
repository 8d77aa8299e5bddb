"""Errors that a user can mend. Each message names the value, the place and the remedy."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user asked for. Command lines print its message and exit with 2, without a traceback."""


class RecipeError(UserError):
    """A recipe, an override or a table definition that cannot be used."""


class DataError(UserError):
    """A data set that cannot be reached, read, or that lacks what the recipe names."""


class CheckpointError(UserError):
    """A published checkpoint, or one to be published, that cannot be found, read or trusted."""


class UnsupportedLayerError(UserError):
    """A parameter of a layer is used in a way for which no exact per-example norm is known."""

    def __init__(self, problem: str, layer: str) -> None:
        remedy = (
            "Leave it out of the adaptation, at a rate of its own, with "
            f"overrides={{{layer!r}: {{'adapt': False, 'lr': 0.1}}}} (in a recipe: optimizer.overrides); a pattern "
            "such as 'name.*' leaves several out."
        )
        super().__init__(f"Layer {layer!r} {problem} {remedy}")
        self.layer = layer


class Fault(UserError):
    """Another process of the run is gone or does not answer. The run can be resumed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the known names closest to `name`, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
