"""From a decoded image to a normalised tensor. Random choices follow the seeds of `torch` and `random`."""

from collections.abc import Callable, Sequence

from PIL.Image import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import Compose, PILToTensor, RandomCrop, RandomHorizontalFlip

from clars.errors import RecipeError
from clars.lab.recipes import schema

Transform = Callable[[Image], Tensor]
MARGIN = 4


def build(data: schema.Data, training: bool) -> Transform:
    """Return the transform of a PIL image to a float32 [channels, image_size, image_size] tensor.

    `none`: the shorter side is brought to `image_size`, then the centre is cut out.
    `crop`: the same; in training then a random crop after padding by 4 pixels, and a random mirror image.
    `imagenet`: in training a random resized crop and a random mirror image; in evaluation the shorter side is
    brought to 8/7 of `image_size`, then the centre is cut out.
    With `data.randaugment` images in training go through timm's RandAugment before they become tensors.
    """
    mean, std = statistics(data)
    common = {"input_size": data.image_size, "mean": mean, "std": std, "interpolation": "bilinear"}
    if data.augmentation == "imagenet":
        return create_transform(**common, is_training=training, color_jitter=None, auto_augment=data.randaugment)
    plain = create_transform(**common, is_training=True, no_aug=True)
    if data.randaugment and training:
        plain.transforms.insert(2, _randaugment(data.randaugment, mean))  # after resizing and cutting out
    if data.augmentation == "crop" and training:
        # After normalisation: the padding is then the mean colour.
        return Compose([plain, RandomCrop(data.image_size, padding=MARGIN), RandomHorizontalFlip()])
    return plain


def _randaugment(description: str, mean: Sequence[float]) -> Callable[[Image], Image]:
    """Return timm's RandAugment; what an image is moved away from becomes the mean colour."""
    return rand_augment_transform(description, {"img_mean": tuple(round(255 * value) for value in mean)})


def mode_of(data: schema.Data) -> str:
    """Return PIL's name for images of as many channels."""
    return "RGB" if data.channels == 3 else "L"


def to_bytes(data: schema.Data) -> Callable[[Image], Tensor]:
    """Return what `none` and `crop` begin with: from a PIL image to uint8 [channels, image_size, image_size]."""
    resize, crop, *_ = create_transform(
        data.image_size, is_training=True, no_aug=True, interpolation="bilinear"
    ).transforms
    return Compose([resize, crop, PILToTensor()])


def statistics(data: schema.Data) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of pixels in [0, 1]: the recipe's, or customary ones."""
    colour = data.channels == 3
    mean = per_channel("data.mean", data.mean, data.channels)
    std = per_channel("data.std", data.std, data.channels)
    return (
        tuple(mean or (IMAGENET_DEFAULT_MEAN if colour else (0.5,))),
        tuple(std or (IMAGENET_DEFAULT_STD if colour else (0.5,))),
    )


def per_channel(key: str, values: list[float] | None, channels: int) -> list[float] | None:
    """Return `values`, one for each channel or None. Raises RecipeError, naming `key`, for another number."""
    if values is not None and len(values) != channels:
        raise RecipeError(f"{key}={values} has {len(values)} values, data.channels={channels}. Give one a channel.")
    return values
