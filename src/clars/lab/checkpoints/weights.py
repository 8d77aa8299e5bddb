"""The tensors of a safetensors file, after its header was checked."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from clars.errors import CheckpointError, printable
from clars.lab.checkpoints import folder, header


def content(path: Path, expected: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of a file that holds exactly the tensors of a state dict, by name, shape and type.

    Raises:
        CheckpointError: it is no safetensors file, or of another architecture.
    """
    with folder.opened(path) as (file, size):
        header.check(header.read(file, size, path), expected, path)
        file.seek(0)
        return file.read(size)


def load(content: bytes, path: Path) -> dict[str, Tensor]:
    """Return the tensors that the bytes of a file hold.

    Args:
        content: the bytes.
        path: what to call the file in an error.

    Raises:
        CheckpointError: it was changed after its header was checked.
    """
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} was changed while it was read: {printable(str(error))}.") from None
