"""Labels of tensors: whose elements are in their memory."""

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from clars.norms.owners.pattern import PLAIN, Pattern


class Unknown(Enum):
    """What else a label may say than a pattern."""

    MIXED = "elements depend on several examples, or lie in no pattern"
    STRAY = "came with the model's input, with another first dimension than the batch's"


class _Periodic(NamedTuple):
    """Byte `base + (k * B + i) * period + r` of a memory, r < period, belongs to example i of B."""

    storage: StorageWeakRef  # as long as this is there, no other memory has its address
    base: int
    period: int


class Labels:
    """Which elements of tensors belong to which of B examples.

    They are kept per memory and not per tensor: all views of a tensor, made in whatever way, share it.
    """

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self._found: dict[int, _Periodic | tuple[StorageWeakRef, Unknown]] = {}

    def of(self, x: Tensor) -> Pattern | Unknown | None:
        """Return where a tensor's examples are; None where no example owns any of it."""
        found = self._found.get(_address(x)) if has_memory(x) else None
        if found is None:
            return None
        if not isinstance(found, _Periodic):
            return found[1]
        return self._read(x, found.base, found.period)

    def put(self, x: Tensor, label: Pattern | Unknown | None) -> None:
        """Note where the examples of a tensor are, and with them those of all that shares its memory."""
        if label is None or not has_memory(x):
            return
        storage = StorageWeakRef(x.untyped_storage())
        if isinstance(label, Unknown):
            self._found[_address(x)] = (storage, label)
        else:
            size = x.element_size()
            period = label.inner * max(1, x.stride(label.dim)) * size
            self._found[_address(x)] = _Periodic(storage, x.storage_offset() * size, period)

    def write(self, x: Tensor, label: Pattern | Unknown | None) -> None:
        """Note that a tensor, which may be a part of one that was made before, got values of such examples."""
        before = self.of(x)
        if label is None or before == label:
            return
        if before is not None or not isinstance(label, Pattern):
            self.put(x, Unknown.MIXED)
            return
        self.put(x, label)
        found = self._found.get(_address(x))
        if isinstance(found, _Periodic):  # the whole begins at a multiple of the first example's part
            self._found[_address(x)] = found._replace(base=found.base // found.period * found.period)

    def _read(self, x: Tensor, base: int, period: int) -> Pattern | Unknown:
        if self.examples == 1:
            return PLAIN._replace(inner=len(x)) if x.dim() else Unknown.MIXED
        whole, width = period * self.examples, x.element_size()
        ways = [(stride * width, size, dim) for dim, (stride, size) in enumerate(zip(x.stride(), x.shape)) if size > 1]
        ways = sorted(way for way in ways if way[0] % whole)  # others lead to an element of the same example
        if not ways:
            return Unknown.MIXED  # of one example alone
        *inside, (stride, size, dim) = ways
        offset = x.storage_offset() * width - base
        unit = min(stride, period)
        inner = period // unit
        regular = stride <= period and period % unit == 0 and size % (inner * self.examples) == 0
        if not regular or (offset % whole) // unit:
            return Unknown.MIXED
        if offset % unit + sum((each - 1) * step for step, each, _ in inside) >= unit:
            return Unknown.MIXED
        return Pattern(dim, size // (inner * self.examples), inner)


def _address(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def has_memory(x: Tensor) -> bool:
    """Tell whether a tensor has a memory of its own, and is not made up of others."""
    plain = type(x).__torch_dispatch__ is Tensor.__torch_dispatch__
    return plain and x.layout is torch.strided and not x.is_meta


def is_fake(x: Tensor) -> bool:
    """Tell whether a tensor has no values."""
    return isinstance(x, FakeTensor) or x.is_meta
