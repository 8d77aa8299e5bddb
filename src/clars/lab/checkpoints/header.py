"""The header of a safetensors file, read and checked before any tensor is.

Source of the format: https://github.com/huggingface/safetensors, section "Format": the header's length in 8 bytes,
little-endian; the header, JSON; the tensors' bytes, without gaps or overlaps. The library of that name decides what a
header says, as it does whenever the tensors are read; what it lets pass and another reader may not is refused here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clars.errors import CheckpointError, printable, quoted, shortened
from clars.lab.checkpoints import reading

TENSORS = 3_500  # in one file; of timm's networks, ResNet-RS-420 has most: 3,108
LIMIT = 1_000_000  # bytes of header, and for each tensor
EACH = 1_000
NAMES = {f"torch.{name}": code for name, code in [("float32", "F32"), ("int64", "I64"), ("bool", "BOOL")]}
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class Stored(NamedTuple):
    """One tensor of the file."""

    dtype: str
    shape: tuple[int, ...]


def read(file: BinaryIO, size: int, path: Path) -> dict[str, Stored]:
    """Return what tensors a file holds, by name, without reading them.

    Args:
        file: is open, at its beginning.
        size: in bytes.
        path: what to call it in an error.

    Raises:
        CheckpointError: it is no safetensors file, or the header does not describe the file's bytes exactly.
    """
    start = file.read(8)
    if start.startswith(PICKLES):
        raise CheckpointError(f"{path} is a pickle, which could run anything when read. It is not read.")
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(LIMIT, size - 8):
        raise CheckpointError(f"{path} is no safetensors file: its header would have {length} of {size} bytes.")
    content = file.read(length)
    try:
        stored = _by_the_library(file)
        _agree(reading.parse(content), stored)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} has a damaged header: {printable(shortened(str(error), 500))}.") from None
    if len(stored) > TENSORS or length > EACH * (len(stored) + 1):
        raise CheckpointError(
            f"{path} has a header of {length} bytes for {len(stored)} tensors; at most {TENSORS} tensors, with {EACH} "
            "bytes each, are read."
        )
    return stored


def check(stored: Mapping[str, Stored], expected: Mapping[str, Tensor], path: Path) -> None:
    """Check that a file holds exactly the tensors of a state dict, by name, shape and type.

    Args:
        stored: what `read` returned.
        expected: the state dict; its tensors may be on the meta device.
        path: what to call the file in an error.

    Raises:
        CheckpointError: the file is of another architecture.
    """
    if lacking := sorted(expected.keys() - stored.keys()):
        raise CheckpointError(f"{path} lacks {_listed(lacking)} of the architecture.")
    if foreign := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{path} holds {_listed(foreign)}, which the architecture does not have.")
    for name, tensor in expected.items():
        found, wanted = stored[name], Stored(NAMES.get(str(tensor.dtype), str(tensor.dtype)), tuple(tensor.shape))
        if found != wanted:
            raise CheckpointError(
                f"{path}: tensor {quoted(name)} is {found.dtype} of shape {found.shape}, the architecture has "
                f"{wanted.dtype} of shape {wanted.shape}."
            )


def _by_the_library(file: BinaryIO) -> dict[str, Stored]:
    """Return what the library finds in the open file, by whatever name that may be in reach by now."""
    with safe_open(f"/dev/fd/{file.fileno()}", "numpy") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}


def _agree(header: object, stored: Mapping[str, Stored]) -> None:
    """Compare the header's JSON with what the library made of it, which ignores keys and takes lists for mappings.

    Raises:
        ValueError: they differ.
    """
    if not isinstance(header, dict):
        raise ValueError("it is no mapping")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if tensors.keys() != stored.keys():
        raise ValueError("it names other tensors than are read")
    for name, entry in tensors.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {quoted(name)} is not described by dtype, shape and data_offsets alone")
        if len(entry["shape"]) > 8 or (entry["dtype"], tuple(entry["shape"])) != stored[name]:
            raise ValueError(f"tensor {quoted(name)} is no {quoted(entry['dtype'])} of shape {quoted(entry['shape'])}")


def _listed(names: list[str]) -> str:
    first = quoted(names[0])
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more tensors"
