"""pydantic's errors in the words of a recipe: the dotted key, where it stands, its value, what is allowed."""

from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel, ValidationError

from clars.errors import nearest
from clars.lab.recipes.reading import QUOTED, quoted
from clars.lab.recipes.schema import FORMS

MOST = 10  # mistakes in one message


def explain(error: ValidationError, schema: type[BaseModel], data: object, where: Callable[[str], str]) -> str:
    """Return one message, a line for each of the first mistakes.

    Args:
        error: what pydantic found in `data`.
        schema: the model that `data` was checked against.
        data: what was checked, as read from YAML.
        where: the place a dotted key comes from: a file or an override.
    """
    problems: dict[str, list[str]] = {}
    for detail in error.errors():
        key, value = _locate(detail["loc"], data)
        if len(problems) == MOST and key not in problems:
            break
        if detail["type"] == "missing":
            key, problem = _dotted(detail["loc"]), "is missing."
        elif detail["type"] == "extra_forbidden":
            problem = f"is not a known key.{suggestion(key, schema)}"
        else:
            problem = f"= {quoted(value)} must be {_allowed(detail)}"
        # A union complains once for each of its members, always about the same value.
        same = problems.setdefault(key, [])
        same.append(problem if not same else f"or {_allowed(detail)}")
    lines = (f"{where(key)}: {_visible(key) or 'the whole'} {' '.join(texts)}" for key, texts in problems.items())
    return "\n".join(line if line.endswith(("?", ".")) else f"{line}." for line in lines)


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every key of `schema`, those of its sections after a dot."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from dotted_keys(section, f"{prefix}{name}.")


def suggestion(key: str, schema: type[BaseModel]) -> str:
    """Return which known keys an unknown dotted `key` may stand for, or else the keys of its section."""
    section, _, last = ".".join(part for part in key.split(".") if not part.isdigit()).rpartition(".")
    known = list(dotted_keys(schema))
    beside = [other for other in known if other.rpartition(".")[0] == section]
    # A right name in the wrong section is likelier than a misspelt one, and a neighbour likelier than a stranger.
    for pool, cutoff in ((known, 1.0), (beside, 0.6), (known, 0.6)):
        matches = get_close_matches(last, {_last(other) for other in pool}, cutoff=cutoff)
        if near := [other for other in pool if _last(other) in matches]:
            return f" Did you mean {' or '.join(map(repr, near))}?"
    return f" Known here: {', '.join(beside or known)}."


def _sections(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _visible(key: str) -> str:
    return key if key.isprintable() and len(key) <= QUOTED else quoted(key)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _dotted(parts: Iterable) -> str:
    return ".".join(map(str, parts))


def _locate(parts: Iterable, data: object) -> tuple[str, object]:
    """Follow `parts` as far as the data go: pydantic appends a union's members as if they were keys."""
    found = []
    for part in parts:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
        found.append(part)
    return _dotted(found), data


def _allowed(detail: dict) -> str:
    if detail["type"] in ("model_type", "dict_type"):
        return "a section of keys and values"
    if detail["type"] == "string_pattern_mismatch":
        return FORMS.get(detail["ctx"]["pattern"], detail["msg"])
    text = detail["msg"].removeprefix("Input should be ")
    if detail["type"] == "literal_error":
        near = nearest(str(detail["input"]), detail["ctx"]["expected"].split("'")[1::2])
        return f"{text}.{near}" if near else text
    return text
