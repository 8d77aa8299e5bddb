"""The tensors in what a function is called with, or returns."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Size, Tensor


def tensors_in(values: Iterable) -> Iterator[Tensor]:
    """Yield the tensors among `values`, those in tuples, lists, mappings and dataclasses included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors_in(value)
        elif isinstance(value, (dict, Mapping)):
            yield from tensors_in(value.values())
        elif is_dataclass(value) and not isinstance(value, type):
            yield from tensors_in([getattr(value, each.name) for each in fields(value)])


def replaced(values, places: Mapping[int, Tensor]):
    """Return a call's arguments with other tensors in some places, given by the ids of those there."""
    if isinstance(values, Tensor):
        return places.get(id(values), values)
    if isinstance(values, (list, tuple)) and not isinstance(values, Size):
        made = [replaced(value, places) for value in values]
        return type(values)(*made) if hasattr(values, "_fields") else type(values)(made)
    if isinstance(values, Mapping):
        return {key: replaced(value, places) for key, value in values.items()}
    return values
