"""Changes to a recipe from the command line: `optimizer.weight_decay=0`."""

import copy
import json
from collections.abc import Mapping, Sequence

from clars.errors import RecipeError
from clars.lab.recipes.reading import parse, steering


def read(overrides: Sequence[str]) -> dict[str, object]:
    """Return the value of each dotted key, in the order given.

    Raises:
        RecipeError: an override without `=` or key, a value that is not YAML, the same key twice, or a key beside
            its section, of which one would undo the other.
    """
    values: dict[str, object] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"override {override!r}: write key=value, such as optimizer.momentum=0.8.")
        if sign := steering(key, ""):
            raise RecipeError(f"override {override!r}: the key holds {sign}, which belongs in no text.")
        if key in values:
            raise RecipeError(f"override {override!r}: {key} is given twice; keep one.")
        if other := next((other for other in values if _within(key, other) or _within(other, key)), None):
            raise RecipeError(
                f"override {override!r}: {max(key, other, key=len)} is part of {min(key, other, key=len)}, which is"
                " given as well and would be replaced as a whole; give the section with all its keys, or single keys."
            )
        values[key] = parse(value, f"override {override!r}")
    return values


def write(values: Mapping[str, object]) -> list[str]:
    """Return the overrides that `read` turns into `values`; texts stand without quotes where they can.

    Raises:
        RecipeError: a value holds a number that is not finite, which no setting takes.
    """
    try:
        return [f"{key}={_written(value)}" for key, value in values.items()]
    except ValueError:
        raise RecipeError(f"{values}: no setting takes a number that is not finite.") from None


def apply(data: dict, values: dict[str, object]) -> dict:
    """Return a copy of `data`, a recipe file's content, in which each dotted key of `values` has its value.

    Sections that the file leaves out are added. Whether keys and values are allowed is for the schema to say.

    Raises:
        RecipeError: a key goes into something that is not a section.
    """
    data = copy.deepcopy(data)
    for key, value in values.items():
        *sections, last = key.split(".")
        section = data
        for depth, name in enumerate(sections, start=1):
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                above = ".".join(sections[:depth])
                raise RecipeError(f"override '{key}={value}': {above} is a value, not a section.")
        section[last] = value
    return data


def _within(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _written(value: object) -> str:
    try:
        plain = isinstance(value, str) and parse(value, "a value") == value
    except RecipeError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=False, allow_nan=False)  # YAML reads JSON
