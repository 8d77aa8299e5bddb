"""A recipe upon another one: what its file does not say stands in that of its base, of one version for ever."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from clars.errors import RecipeError
from clars.lab.recipes import registry
from clars.lab.recipes.reading import quoted, read_file
from clars.lab.recipes.writing import dump


@dataclass(frozen=True)
class Origins:
    """Which file says what: the recipe's own, or its base."""

    own: Path
    base: Path
    keys: frozenset[str]

    def of(self, key: str) -> Path:
        """Return the file that a dotted key comes from; the recipe's own for one that is in neither."""
        below = any(f"{known}.".startswith(f"{key}.") or f"{key}.".startswith(f"{known}.") for known in self.keys)
        return self.base if below else self.own


def resolve(data: dict, path: Path) -> tuple[dict, str, Origins]:
    """Return a recipe's settings with those of its base, the SHA-256 of their text, and where each stands.

    Sections are joined key by key; what stands in both is the recipe's own.

    Args:
        data: what the recipe's file holds, with the key `base`.
        path: that file.

    Raises:
        RecipeError: the base is none, states no version, or has a base itself.
    """
    name = data["base"]
    if not isinstance(name, str) or "@" not in name:
        raise RecipeError(
            f"{path}: base = {quoted(name)} must be a recipe with its version, such as warmup/resnet8@v2, so that it is"
            " the same for ever."
        )
    try:
        _, _, file = registry.find(name)
        below, _ = read_file(file)
    except RecipeError as error:
        raise RecipeError(f"{path}: base: {error}") from None
    if below.get("base") is not None:
        raise RecipeError(f"{path}: base = {quoted(name)} has a base itself, {quoted(below['base'])}. Name that one.")
    joined = _joined(below, data)
    origins = Origins(path, file, frozenset(_keys(below)) - frozenset(_keys(data)))
    return joined, hashlib.sha256(dump(joined).encode()).hexdigest(), origins


def _joined(below: Mapping, above: Mapping) -> dict:
    both = {**below, **above}
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            both[key] = _joined(below[key], value)
    return both


def _keys(data: Mapping, prefix: str = "") -> Iterator[str]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
