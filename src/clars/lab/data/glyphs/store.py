"""The images of `glyphs`, kept in the user's cache folder once they are drawn."""

import hashlib
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clars.cache import folder
from clars.lab.data.glyphs import draw, fonts
from clars.lab.files import write_tensors

VERSION = 1  # to be raised with any change of what is drawn
COUNTS = {"train": 65_536, "test": 9_216}


def read_or_draw() -> dict[str, Tensor]:
    """Return uint8 [COUNTS[split], SIZE, SIZE] by split, from the cache if they are there, whole.

    Each process that finds none draws the same bytes, and puts a whole file in place of another's.
    Raises DataError if fonts are missing.

    Warns:
        UserWarning: the file in the cache is broken and drawn anew, or cannot be written.
    """
    parameters = {"version": str(VERSION), "fonts": fonts.fingerprint()} | {k: str(n) for k, n in COUNTS.items()}
    key = hashlib.sha256(repr(sorted(parameters.items())).encode()).hexdigest()[:12]
    path = folder("glyphs") / f"v{VERSION}-{key}.safetensors"
    if path.exists():
        try:
            return _read(path, parameters)
        except (OSError, SafetensorError, ValueError) as error:
            warnings.warn(f"{path} is broken ({error}); glyphs are drawn anew.", UserWarning, stacklevel=2)
    images = {split: torch.from_numpy(draw.images(split, count)) for split, count in COUNTS.items()}
    try:
        write_tensors(path, images, parameters | {"sha256": _digest(images)})
    except OSError as error:
        warnings.warn(
            f"glyphs cannot be kept in {path.parent} ({error}), and will be drawn again by every run."
            " Make room there, or name another folder by CLARS_CACHE.",
            UserWarning,
            stacklevel=2,
        )
    return images


def _read(path: Path, parameters: dict[str, str]) -> dict[str, Tensor]:
    """Read the file. Raises ValueError for any other than was asked for."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        images = {split: file.get_tensor(split) for split in sorted(file.keys())}
    if metadata != parameters | {"sha256": _digest(images)}:
        raise ValueError("its content is not what its header says")
    return images


def _digest(images: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for split in sorted(images):
        digest.update(images[split].numpy())
    return digest.hexdigest()
