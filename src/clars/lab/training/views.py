"""Random views of images, a whole batch at a time, on its device."""

import torch
from torch import Tensor
from torch.nn import functional as F

WIDEST = 4 / 3  # ratio of a window's sides; 3 / 4 is the narrowest


def view(images: Tensor, smallest: float, jitter: float) -> Tensor:
    """Return another view of normalised images [n, c, h, w], each by choices of its own from torch's generator.

    A window of a share of at least `smallest` of the image, uniformly drawn, is brought to its size, mirrored in one
    of two cases; then contrast becomes a factor within 1 +- `jitter`, and brightness is moved by as much of a standard
    deviation.
    """
    n, device = len(images), images.device
    uniform = torch.rand(7, n, device=device)
    area = smallest + (1 - smallest) * uniform[0]
    ratio = WIDEST ** (2 * uniform[1] - 1)
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * uniform[2] - 1), (1 - height) * (2 * uniform[3] - 1)  # of centres, in [-1, 1]
    mirror = torch.where(uniform[4] < 0.5, -1.0, 1.0)
    zero = torch.zeros(n, device=device)
    rows = torch.stack([width * mirror, zero, left]), torch.stack([zero, height, top])
    affine = torch.stack(rows).permute(2, 0, 1)  # [n, 2, 3]
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    seen = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = (1 + jitter * (2 * uniform[5] - 1)), jitter * (2 * uniform[6] - 1)
    return seen * contrast.view(-1, 1, 1, 1) + brightness.view(-1, 1, 1, 1)
