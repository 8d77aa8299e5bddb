"""The header of a safetensors file, read and checked before any tensor is.

Source of the format: https://github.com/huggingface/safetensors, section "Format": the header's length in 8 bytes,
little-endian; the header, JSON; the tensors' bytes, without gaps or overlaps.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from clars.errors import CheckpointError

LIMIT = 25_000_000  # bytes of header; a network with ten thousand tensors needs one
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
NAMES = {f"torch.{name}": code for name, code in [("float32", "F32"), ("int64", "I64"), ("bool", "BOOL")]}
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Stored(NamedTuple):
    """One tensor of the file."""

    dtype: str
    shape: tuple[int, ...]


def read(path: Path) -> dict[str, Stored]:
    """Return what tensors a file holds, by name, without reading them.

    Raises:
        CheckpointError: it is no safetensors file, or the header does not describe the file's bytes exactly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(PICKLES):
            raise CheckpointError(f"{path} is a pickle, which could run anything when read. It is not read.")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(LIMIT, size - 8):
            raise CheckpointError(f"{path} is no safetensors file: its header would have {length} of {size} bytes.")
        content = file.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_once)
        header.pop("__metadata__", None)
        spans = sorted((*entry["data_offsets"], name) for name, entry in header.items())
        stored = {name: _stored(**entry) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged header: {error}.") from None
    end = 0
    for first, last, name in spans:
        if first != end:
            raise CheckpointError(f"{path}: tensor {name!r} begins at byte {first} of the data, not at {end}.")
        end = last
    if end != size - 8 - length:
        raise CheckpointError(f"{path}: the header declares {end} bytes of tensors, there are {size - 8 - length}.")
    return stored


def check(path: Path, expected: Mapping[str, Tensor]) -> None:
    """Check that a file holds exactly the tensors of a state dict, by name, shape and type.

    Args:
        path: the file.
        expected: the state dict; its tensors may be on the meta device.

    Raises:
        CheckpointError: as `read`, or the file is of another architecture.
    """
    stored = read(path)
    if lacking := sorted(expected.keys() - stored.keys()):
        raise CheckpointError(f"{path} lacks {_listed(lacking)} of the architecture.")
    if foreign := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{path} holds {_listed(foreign)}, which the architecture does not have.")
    for name, tensor in expected.items():
        found, wanted = stored[name], Stored(NAMES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        if found != wanted:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {found.dtype} of shape {found.shape}, the architecture has {wanted.dtype} "
                f"of shape {wanted.shape}."
            )


def _stored(dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    first, last = data_offsets
    if len(shape) > 8 or any(type(number) is not int or not 0 <= number < 2**63 for number in (*shape, first, last)):
        raise ValueError(f"shape {str(shape)[:80]} at {str(data_offsets)[:80]} is none of a tensor")
    if math.prod(shape) * BYTES[dtype] != last - first:
        raise ValueError(f"shape {shape} of {dtype} does not fill the bytes {data_offsets}")
    return Stored(dtype, tuple(shape))


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a key that stands twice: readers differ in which of the two they believe."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _listed(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{names[0]!r} and {len(names) - 1} more tensors"
