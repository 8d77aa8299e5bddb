"""JSON as checkpoints use it: one value for each text, whichever program reads it."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from clars.errors import CheckpointError, printable, quoted
from clars.lab.runs.record import first_problem

VALUES = 60_000  # in one text, about: tens of thousands of classes, or a thousand checkpoints
M = TypeVar("M", bound=BaseModel)


def parse(content: bytes) -> object:
    """Return the value of a JSON text, or refuse what readers take differently or not at all.

    Python's own reader takes byte order marks, UTF-16, NaN, the last of two equal keys, halves of surrogate pairs and
    whole numbers of any length.

    Raises:
        ValueError: it is no such text; the message names what is wrong.
    """
    if content.count(b",") > VALUES:
        raise ValueError(f"it has more than {VALUES} values")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_within_64_bits,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({error.reason})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


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


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {quoted(twice)} stands twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {quoted(text)} is too large")
    return value


def _within_64_bits(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"the number {quoted(text)} has more than 64 bits")
    return int(text)
