"""From a name and overrides to a checked recipe."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from clars.errors import RecipeError
from clars.lab.recipes import base, checks, registry
from clars.lab.recipes.messages import explain
from clars.lab.recipes.overrides import apply, read
from clars.lab.recipes.pretrained import with_statistics
from clars.lab.recipes.reading import read_file
from clars.lab.recipes.schema import Recipe, Settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Resolved:
    """A recipe with its origin: `folder/name`, and the SHA-256 of its file, without overrides.

    Of a recipe with a base it is that of the text that both make together, `writing.dump` of all their settings.
    """

    name: str
    version: str
    path: Path
    sha256: str
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def full_name(self) -> str:
        """What `load` finds it by: name and version, or the path of a file outside the recipes folder."""
        return f"{self.name}@{self.version}" if registry.holds(self.path) else str(self.path)

    @property
    def short_name(self) -> str:
        """The last part of the name, by which the folder of its runs is called."""
        return self.name.rpartition("/")[2]

    @property
    def peak_rate(self) -> float:
        """The rate after warmup, scaled from the base batch."""
        return self.recipe.schedule.peak_rate(self.recipe.batch_size)


def load(name: str, overrides: Sequence[str] = ()) -> Resolved:
    """Read and check a recipe.

    Args:
        name: `folder/name`, `folder/name@v1`, or the path of a .yaml file.
        overrides: changes, each `key=value` with a dotted key and a YAML value.

    Raises:
        RecipeError: unknown recipe, unreadable file, unknown key, wrong type or impossible value. The message
            names the key, the file or override it comes from, the value, and what is allowed.

    Warns:
        UserWarning: a setting that has no effect beside the others.
    """
    values = read(overrides)
    bare, version, path = registry.find(name)
    data, sha256 = read_file(path)
    below = None
    if data.get("base") is not None:
        data, sha256, below = base.resolve(data, path)
    sources = dict(zip(values, overrides))

    def where(key: str) -> str:
        for changed, override in sources.items():
            if f"{key}.".startswith(f"{changed}.") or f"{changed}.".startswith(f"{key}."):
                return f"override {override!r}"
        return str(path if below is None else below.of(key))

    recipe = with_statistics(validate(Recipe, apply(data, values), where))
    place = f"{path} with {', '.join(overrides)}" if overrides else str(path)
    if problems := [f"{place}: {key} {reason}." for key, reason in checks.impossible(recipe)]:
        raise RecipeError("\n".join(problems))
    for key, cause in checks.ignored(recipe):
        if below is not None and where(key) == str(below.base):
            continue  # it has an effect there
        warnings.warn(f"{place}: {key} has no effect with {cause}.", UserWarning, stacklevel=2)
    return Resolved(bare, version, path, sha256, tuple(overrides), recipe)


def validate(schema: type[S], data: dict, where: Callable[[str], str]) -> S:
    """Check `data` against `schema`, without conversion between types: a quoted number is text.

    Args:
        schema: what the data may say.
        data: what a file and overrides say.
        where: the place a dotted key comes from, for messages.
    """
    try:
        return schema.model_validate(data, strict=True)
    except ValidationError as error:
        raise RecipeError(explain(error, schema, data, where)) from None
