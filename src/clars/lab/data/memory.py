"""Images held in memory, one byte a pixel, and made into normalised batches a whole batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms import RandomCrop

from clars.lab.data.splits import Batch, Images
from clars.lab.data.transforms import MARGIN
from clars.lab.seeds import seed_example


class StoredImages(Images):
    """Images uint8 [n, c, h, w] with labels int64 [n].

    Batches are (pixels / 255 - mean) / std, float32 [n, channels, h, w], with one mean and standard deviation for each
    channel; a single stored channel is repeated. With `crop`, as in `transforms.build`: bit for bit what an image
    gets that is decoded anew. `rows` int64 [n] are the numbers of the images in the split they come from.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop: bool = False,
        rows: Tensor | None = None,
    ) -> None:
        self.pixels, self.labels, self.crop = pixels, labels, crop
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self.rows = torch.arange(len(labels)) if rows is None else rows

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices)
        images = self.pixels[index].float().div_(255)
        if len(self.mean) > images.shape[1]:
            images = images.expand(-1, len(self.mean), -1, -1).contiguous()
        images.sub_(self.mean).div_(self.std)
        return (self._cropped(images, index) if self.crop else images), self.labels[index]

    def _cropped(self, images: Tensor, index: Tensor) -> Tensor:
        size = images.shape[-2:]
        padded = pad(images, [MARGIN] * 4)
        for number, row in enumerate(self.rows[index].tolist()):
            if self.place is not None:
                seed_example(*self.place, row)
            top, left, height, width = RandomCrop.get_params(padded[number], size)
            window = padded[number, :, top : top + height, left : left + width]
            images[number] = window.flip(-1) if torch.rand(1) < 0.5 else window
        return images


def resize(images: Tensor, size: int) -> Tensor:
    """[n, c, h, h] -> [n, c, size, size], uint8 or float, with smoothing where images become smaller."""
    if size == images.shape[-1]:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)
