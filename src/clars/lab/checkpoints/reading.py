"""JSON as checkpoints use it: one value for each text, whichever program reads it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from clars.errors import CheckpointError, printable, quoted
from clars.lab import strict_json
from clars.lab.runs.record import first_problem

VALUES = 60_000  # in one text, about: tens of thousands of classes, or a thousand checkpoints
M = TypeVar("M", bound=BaseModel)


def parse(content: bytes) -> object:
    """Return the value of a JSON text, as `strict_json.parse`, of no more than VALUES values.

    Raises:
        ValueError: it is no such text; the message names what is wrong.
    """
    if content.count(b",") > VALUES:
        raise ValueError(f"it has more than {VALUES} values")
    return strict_json.parse(content)


def value(content: bytes, path: Path) -> object:
    """Return the value of a JSON file, as `parse`.

    Raises:
        CheckpointError: the content is no such text; the message names the file.
    """
    try:
        return parse(content)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None


def read(schema: type[M], content: bytes, path: Path) -> M:
    """Return the value of a schema that a JSON file holds, each part in its own type.

    Raises:
        CheckpointError: the content is no JSON, or none of the schema; the message names the file and the key.
    """
    try:
        said = value(content, path)
        found = schema.model_validate_json(json.dumps(said), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path} cannot be used: {printable(first_problem(error))}.") from None
    if wrong := next(_of_other_types(said, found.model_dump(mode="json")), None):
        raise CheckpointError(f"{path} cannot be used: {wrong}.")
    return found


def _of_other_types(said: object, found: object, key: str = "") -> Iterator[str]:
    """Tell of values that a schema took for equal ones of its own: `true` for 1, 0 for `false`, 1.0 for 1."""
    if isinstance(said, dict) and isinstance(found, dict):
        for name in said.keys() & found.keys():
            yield from _of_other_types(said[name], found[name], f"{key}.{name}" if key else name)
    elif isinstance(said, list) and isinstance(found, list):
        for number, (one, other) in enumerate(zip(said, found)):
            yield from _of_other_types(one, other, f"{key}.{number}")
    elif type(said) is not type(found) and (type(said), type(found)) != (int, float):
        yield f"{quoted(key)} is {quoted(said)}, which would be read as {quoted(found)}"
