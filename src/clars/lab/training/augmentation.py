"""What becomes of a training batch on its device, by timm: erased rectangles, and images mixed with their labels."""

import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from clars.errors import UserError
from clars.lab.launching.division import Division
from clars.lab.recipes.schema import Recipe


class BatchAugmentation:
    """Changes images [n, c, h, w] and labels int64 [n] of a micro-batch; mixed labels are shares, float [n, classes].

    Choices follow from the seeds of `random`, NumPy and torch. Images are mixed within a micro-batch, so they depend on
    how batches are cut, as dropout does.

    Args:
        recipe: `data.random_erasing`, `mixing` and `label_smoothing`.
        classes: of the labels.
        division: of global batches.
        device: of the batches.

    Raises:
        UserError: images are mixed by twos, and a micro-batch has an odd number of them.
    """

    def __init__(self, recipe: Recipe, classes: int, division: Division, device: torch.device) -> None:
        share, mixing = recipe.data.random_erasing, recipe.mixing
        self.erase = RandomErasing(share, mode="pixel", device=device) if share else None
        self.mix = None
        if mixing is None:
            return
        if division.micro_batch % 2:
            raise UserError(
                f"mixing takes images by twos, and a process has {division.micro_batch} in a pass. Choose another"
                " batch_size, or --micro-batch."
            )
        names = {"mixup_alpha": mixing.mixup, "cutmix_alpha": mixing.cutmix, "switch_prob": mixing.switch}
        self.mix = Mixup(
            **names,
            prob=mixing.probability,
            mode=mixing.mode,
            label_smoothing=recipe.label_smoothing,
            num_classes=classes,
        )

    @property
    def smooths(self) -> bool:
        """Whether labels come out smoothed already."""
        return self.mix is not None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.erase is not None:
            images = self.erase(images)
        return (images, labels) if self.mix is None else self.mix(images, labels)
