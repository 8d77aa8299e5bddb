"""Images held in memory, one byte a pixel, and made into normalised batches a whole batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from clars.lab.data import draws
from clars.lab.data.splits import Batch, HeldImages
from clars.lab.data.transforms import MARGIN


class StoredImages(HeldImages):
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
        self._drawn: tuple[tuple, Tensor] | None = None  # a place and a device, and what is drawn for every image

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices, device=self.device)
        images = self.pixels[index].float().div_(255)
        if len(self.mean) > images.shape[1]:
            images = images.expand(-1, len(self.mean), -1, -1).contiguous()
        images.sub_(self.mean).div_(self.std)
        return (_windows(images, *self._choices(index)) if self.crop else images), self.labels[index]

    def _choices(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where the windows of images begin, top and left int64 [n], and whether they are mirrored, bool [n].

        They are what `RandomCrop` and `RandomHorizontalFlip` draw for an example by itself. Those of a whole epoch are
        formed at once, and go to the device together.
        """
        if self.place is None:
            drawn = torch.randint(2**32, (len(index), 3)).to(self.device)
        else:
            if self._drawn is None or self._drawn[0] != (self.place, self.device):
                words = draws.outputs(draws.seeds(self.place, self.rows.cpu().numpy()), 3)
                self._drawn = (self.place, self.device), torch.from_numpy(words.astype("int64")).to(self.device)
            drawn = self._drawn[1][index]
        top, left = (drawn[:, :2] % (2 * MARGIN + 1)).unbind(1)
        return top, left, drawn[:, 2] % 2**24 < 2**23  # as a float32 in [0, 1), below a half


def _windows(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """Return windows of images [n, c, h, w] that are padded by MARGIN: of the same size, some from right to left."""
    n, channels, height, width = images.shape
    across = torch.arange(width, device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - across, across)
    places = rows[:, :, None] * (width + 2 * MARGIN) + columns[:, None, :]
    padded = pad(images, [MARGIN] * 4).flatten(2)
    return padded.gather(2, places.view(n, 1, -1).expand(-1, channels, -1)).view_as(images)


def resize(images: Tensor, size: int) -> Tensor:
    """[n, c, h, h] -> [n, c, size, size], uint8 or float, with smoothing where images become smaller."""
    if size == images.shape[-1]:
        return images
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)
