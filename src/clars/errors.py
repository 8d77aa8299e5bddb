"""Errors that a user can mend. Each message names the value, the place and the remedy."""

import difflib
from collections.abc import Iterable, Mapping

QUOTED = 120  # characters of a value that a message repeats


class UserError(ValueError):
    """A mistake in what the user asked for. Command lines print its message and exit with 2, without a traceback."""


class RecipeError(UserError):
    """A recipe, an override or a table definition that cannot be used."""


class DataError(UserError):
    """A data set that cannot be reached, read, or that lacks what the recipe names."""


class CheckpointError(UserError):
    """A published checkpoint, or one to be published, that cannot be found, read or trusted."""


class UnsupportedLayerError(UserError):
    """Layers use their parameters in ways for which no exact per-example norm is known.

    Args:
        problems: what each layer does, by its name; all that are known of.
        remedy: what to do about them.

    Attributes:
        problems: the same.
    """

    def __init__(self, problems: Mapping[str, str], remedy: str = "") -> None:
        self.problems = dict(problems)
        super().__init__(f"{_listed(self.problems)} {remedy}".strip())


def _listed(problems: Mapping[str, str]) -> str:
    """Return a sentence for each problem, with all the layers that have it."""
    if len(problems) == 1:
        ((layer, problem),) = problems.items()
        return f"Layer {layer!r} {problem}"
    alike: dict[str, list[str]] = {}
    for layer, problem in problems.items():
        alike.setdefault(problem, []).append(repr(layer))
    lines = [f"- {', '.join(layers)}: {problem}" for problem, layers in alike.items()]
    return "\n".join([f"{len(problems)} layers have no exact per-example norms. Each of these", *lines, ""])


class Fault(UserError):
    """Another process of the run is gone or does not answer. The run can be resumed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean ...?" with the known names closest to `name`, or an empty string."""
    if len(name) > QUOTED:  # no slip of the pen, and slow to compare
        return ""
    matches = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""


def printable(text: str) -> str:
    """Return `text` with all that a terminal would obey instead of showing as backslash escapes; line breaks stay.

    Text of a file that somebody else wrote may hold colours, cursor movements, or signs that turn the direction of
    writing. What `str.isprintable` calls printable stays as it is.
    """
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode("ascii") for sign in text
    )


def shortened(text: str, most: int) -> str:
    """Return `text`, or its beginning and end where it has more than `most` characters."""
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]} [{len(text) - most:,} more characters] {text[-(most // 4) :]}"


def quoted(value: object) -> str:
    """Return `repr(value)` as a message may hold it: printable, and not longer than a line or two."""
    return printable(shortened(repr(value), QUOTED))
