"""timm: the smallest network of every family, at the smallest size that it takes."""

import re
from collections import defaultdict
from functools import partial

import timm
import torch
from timm.models import _registry

from .check import CLASSES, Network, first_that_takes, pictures

LARGEST = 60_000_000  # parameters
PIXELS = (64, 96, 128, 160, 192, 224, 256)
MARKS = ("tf_", "legacy_", "gc_", "eca_", "ese_")  # before an architecture's name


def families() -> dict[str, list[str]]:
    """Return the names of timm's networks by the file that defines them and the architecture that they begin with."""
    found = defaultdict(list)
    for name in timm.list_models():
        architecture = name
        for mark in MARKS:
            architecture = architecture.removeprefix(mark)
        architecture = re.match(r"[a-z]+((?<=v)\d)?", architecture)[0]
        if architecture != "test":  # the tiny ones of timm's own tests
            found[f"{_registry._model_to_module[name]}/{architecture}"].append(name)
    return dict(found)


def parameters(name: str) -> int | None:
    """Return how many parameters a network has, without making them; None where that cannot be told."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name)
    except Exception:
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def smallest(families: dict[str, list[str]], known: dict[str, int | None]) -> list[str]:
    """Return the network of each family with the fewest parameters, if these are few enough.

    `known` are the parameters of networks, to which those of others are added.
    """
    for name in [name for names in families.values() for name in names if name not in known]:
        known[name] = parameters(name)
    found = [min(names, key=lambda name: known[name] or LARGEST) for names in families.values()]
    return sorted(name for name in found if (known[name] or LARGEST) < LARGEST)


def make(name: str) -> Network:
    """Make a network for the smallest picture that it takes.

    Raises:
        ValueError: it takes none; with what it says of the size it is for.
    """
    native = timm.get_pretrained_cfg(name, allow_unregistered=False).input_size[-1]
    sizes = (*(pixels for pixels in PIXELS if pixels < native), native)
    return first_that_takes(
        partial(_made, name, pixels, options) for pixels in sizes for options in ({"img_size": pixels}, {})
    )


def _made(name: str, pixels: int, options: dict) -> Network:
    return Network(timm.create_model(name, num_classes=CLASSES, **options), pictures(pixels))
