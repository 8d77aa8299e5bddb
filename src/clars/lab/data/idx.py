"""IDX files, in which MNIST and its successors come: a short header, then bytes.

The format: https://yann.lecun.com/exdb/mnist (two zero bytes, the type, the number of dimensions; each dimension as
a big-endian 32-bit number).
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from clars.errors import DataError

UNSIGNED_BYTE = 8
MOST_DIMENSIONS = 4
LARGEST = 2**31  # bytes; beyond every data set in this form


def find(folder: Path, stem: str) -> Path | None:
    """Return the file of a folder that is called `stem`, as it is or with .gz; None where there is none."""
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return folder / name
    return None


def read(path: Path) -> Tensor:
    """Return the numbers of an IDX file of bytes, gzipped or not, as uint8 in its dimensions.

    Raises:
        DataError: the file cannot be read, is of another kind, or is shorter or longer than its header says.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            sizes = _header(file.read(4), file, path)
            count = math.prod(sizes)
            if count > LARGEST:
                raise DataError(f"{path}: {sizes} bytes are more than can be meant. Fetch the file again.")
            content = file.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Fetch the file again.") from error
    if len(content) != count:
        much = "more" if len(content) > count else f"{len(content)}"
        raise DataError(f"{path}: {count} bytes should follow the header, and there are {much}. Fetch the file again.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(sizes)


def _header(first: bytes, file, path: Path) -> tuple[int, ...]:
    if len(first) < 4 or first[:3] != bytes((0, 0, UNSIGNED_BYTE)) or not 0 < first[3] <= MOST_DIMENSIONS:
        raise DataError(f"{path} is no IDX file of bytes: it begins with {first.hex(' ') or 'nothing'}.")
    sizes = file.read(4 * first[3])
    if len(sizes) < 4 * first[3]:
        raise DataError(f"{path} ends within its header. Fetch the file again.")
    return struct.unpack(f">{first[3]}I", sizes)
