"""JSON as runs use it: one value for each text, whichever program reads it."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import NoReturn

from clars.errors import UserError, quoted


def parse(content: bytes) -> object:
    """Return the value of a JSON text, or refuse what readers take differently or not at all.

    Python's own reader takes byte order marks, UTF-16, NaN, the last of two equal keys, halves of surrogate pairs and
    whole numbers of any length.

    Raises:
        ValueError: it is no such text; the message names what is wrong.
    """
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_once,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_within_64_bits,
        )
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({error.reason})") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def read(path: Path, what: str, remedy: str) -> object:
    """Return the value of a JSON file.

    Args:
        path: the file.
        what: what it should be, such as "record of a run".
        remedy: what to do where it is not, a sentence.

    Raises:
        UserError: the file cannot be read or is no JSON.
    """
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{path} is no {what}: {error}. {remedy}") from None


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
