"""Encoded images in files or parquet cells, decoded when a batch is asked for."""

import io
from collections.abc import Sequence

import datasets
import torch
from PIL import Image
from torch import Tensor

from clars.chance import seed_example
from clars.data.splits import Batch, Images
from clars.data.transforms import Transform
from clars.errors import DataError


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
        if self.place is not None:
            seed_example(*self.place, row)
        return self.transform(self._decode(cell, row))

    def _decode(self, cell: dict | None, row: int) -> Image.Image:
        content, path = (cell["bytes"], cell["path"]) if cell else (None, None)
        where = f"row {row} of split {str(self.split.split)!r}" if content or not path else path
        try:
            if not content and not path:
                raise ValueError("the cell is empty")
            with Image.open(io.BytesIO(content) if content else path) as image:
                return image.convert(self.mode)
        # Broken files make decoders raise nearly anything.
        except Exception as error:
            raise UnreadableImageError(
                f"{where}: the image cannot be decoded ({error}). Restore it from its source, or remove it."
            ) from error
