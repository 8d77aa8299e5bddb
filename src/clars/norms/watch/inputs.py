"""The tensors in what a model is called with."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor


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
