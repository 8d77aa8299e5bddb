"""torchvision: every network that tells classes."""

from functools import partial

from torch import nn
from torchvision import models

from .check import CLASSES, Network, first_that_takes, pictures

LARGEST = 60_000_000  # parameters
PIXELS = (64, 96, 128, 160, 224, 299)


def names() -> list[str]:
    return models.list_models(module=models)


def make(name: str) -> Network:
    """Make a network for the smallest picture that it takes.

    Raises:
        ValueError: it takes none; with what it says of the largest.
    """
    return first_that_takes(partial(_made, name, pixels) for pixels in PIXELS)


def _made(name: str, pixels: int) -> Network:
    options = {"num_classes": CLASSES}
    if name.startswith("vit"):
        patch = 14 if name == "vit_h_14" else 32
        pixels = pixels // patch * patch
        options["image_size"] = pixels
    if name.startswith("maxvit"):
        options["input_size"] = (pixels, pixels)
    if name == "inception_v3" and pixels < 299:  # its auxiliary head tells so in training alone
        raise ValueError(f"{pixels} pixels are too few")
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # by slow draws of SciPy's
    model = models.get_model(name, weights=None, **options)
    return Network(model, pictures(pixels), _shorten(model))


def _shorten(model: nn.Module) -> int:
    """Leave out blocks of a large network that are like the two before them; return how many."""
    if sum(parameter.numel() for parameter in model.parameters()) < LARGEST:
        return 0
    left_out = 0
    for stage in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        blocks = list(stage.named_children())
        kinds = [_kind(block) for _, block in blocks]
        for place, (name, _) in enumerate(blocks):
            if place > 1 and kinds[place] and kinds[place - 2] == kinds[place - 1] == kinds[place]:
                delattr(stage, name)
                left_out += 1
    return left_out


def _kind(block: nn.Module) -> list:
    """Return what tells blocks apart; nothing of what is no block."""
    shapes = [tuple(parameter.shape) for parameter in block.parameters()]
    return [type(block), *shapes] if len(shapes) > 2 else []
