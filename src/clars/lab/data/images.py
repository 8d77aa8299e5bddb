"""Encoded images in files or parquet cells, decoded when a batch is asked for."""

import io
from collections.abc import Sequence

import datasets
import torch
from PIL import Image
from torch import Tensor

from clars.errors import DataError
from clars.lab.data.modes import plain
from clars.lab.data.splits import Batch, Images
from clars.lab.data.transforms import Transform
from clars.lab.seeds import seed_example


class UnreadableImageError(DataError):
    """An image that cannot be decoded. The message names its file, or its row and split."""

    def __init__(self, message: str) -> None:
        # A DataLoader worker hands its whole traceback over as the message; the last line of it is ours.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[-1].strip())


class EncodedImages(Images):
    """The image column of a split.

    `split` holds {"bytes", "path"} in its only column; `labels` int64 [len(split)] belong to its rows; `rows`
    int64 are those in use; `mode` is PIL's ("L" or "RGB").
    A batch with an image that cannot be decoded raises UnreadableImageError.
    """

    def __init__(self, split: datasets.Dataset, labels: Tensor, rows: Tensor, transform: Transform, mode: str) -> None:
        self.split, self.rows, self.transform, self.mode = split, rows, transform, mode
        self.labels = labels[rows]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        rows = self.rows[index].tolist()
        (cells,) = self.split[rows].values()
        images = [self._image(cell, row) for cell, row in zip(cells, rows, strict=True)]
        return torch.stack(images), self.labels[index]

    def _image(self, cell: dict | None, row: int) -> Tensor:
        return transformed(self, decode(cell, f"row {row} of split {str(self.split.split)!r}", self.mode), row)


def transformed(images: Images, image: Image.Image, number: int) -> Tensor:
    """Return the transform of an image; its random choices follow from its number and where the run is."""
    if images.place is not None:
        seed_example(*images.place, number)
    return images.transform(image)


def decode(cell: dict | None, where: str, mode: str) -> Image.Image:
    """Return the image of a cell {"bytes", "path"}, in PIL's `mode`, as `modes.plain` makes it.

    Raises UnreadableImageError, naming the file or else `where`.
    """
    content, path = (cell["bytes"], cell["path"]) if cell else (None, None)
    place = where if content or not path else path
    try:
        if not content and not path:
            raise ValueError("the cell is empty")
        with Image.open(io.BytesIO(content) if content else path) as image:
            return plain(image, mode)
    except DataError as error:
        raise UnreadableImageError(f"{place}: {error}") from error
    # Broken files make decoders raise nearly anything.
    except Exception as error:
        raise UnreadableImageError(
            f"{place}: the image cannot be decoded ({error}). Restore it from its source, or remove it."
        ) from error
