"""From the model section of a recipe to a network."""

import inspect
import re

import timm
import torch
from timm.models import build_model_with_cfg
from torch import nn

from clars.errors import RecipeError, nearest, printable, quoted, shortened
from clars.lab.recipes import schema

LARGEST = 16_384  # of a number among the arguments, so that no file can ask for a network without end
LARGEST_FACTOR = 100  # of one by which others are multiplied
LONGEST = 200  # characters of a text among them
MOST = 50  # arguments
FROM_THE_DATA = {"num_classes", "in_chans", "img_size"}
# What timm's own functions take: weights to fetch, files to read, the output of inner layers.
OF_TIMM = {"pruned", "features_only", "out_indices", "feature_cls"}.union(
    *(inspect.signature(function).parameters for function in (timm.create_model, build_model_with_cfg))
)


def create(model: schema.Model, num_classes: int, channels: int, image_size: int, *, trial: bool = True) -> nn.Module:
    """Build a timm model for [n, channels, image_size, image_size] images and [n, num_classes] logits.

    `trial` is whether to show it an image, as many a model finds out only then that it cannot take this size.

    Raises RecipeError for an unknown name or tag, for arguments that the model does not take and for images that it
    cannot take.
    """
    check(model)
    settings = arguments(model, channels, image_size)
    try:
        network = timm.create_model(model.name, num_classes=num_classes, **settings)
        if trial:
            with torch.no_grad():
                network.eval()(torch.zeros(1, channels, image_size, image_size))
        return network.train()
    # Constructors reject what they are given in as many ways as there are authors.
    except Exception as error:
        given = ", ".join(f"{key}={quoted(value)}" for key, value in model.arguments.items()) or "no arguments"
        raise RecipeError(
            f"model.name={quoted(model.name)} cannot be built with model.arguments {given}"
            f" for {channels} channels of {image_size}x{image_size} pixels: {_told(error)}"
        ) from error


def check(model: schema.Model) -> None:
    """Check what can be said of a model before it is built.

    Raises RecipeError for an unknown name, for arguments that are none of an architecture, and for sizes out of bounds.
    """
    if not timm.is_model(model.name):
        raise RecipeError(
            f"model.name={quoted(model.name)} is no timm model.{nearest(model.name, timm.list_models())}"
            " `timm.list_models()` lists the names."
        )
    if clash := sorted(FROM_THE_DATA & model.arguments.keys()):
        raise RecipeError(
            f"model.arguments: {', '.join(clash)} cannot be set here; the classes, channels and image size"
            " follow from the data section. Remove it."
        )
    if refused := sorted(OF_TIMM & model.arguments.keys()):
        raise RecipeError(
            f"model.arguments: {', '.join(refused)} is no part of an architecture. Remove it; a recipe's init names the"
            " weights to begin with."
        )
    if len(model.arguments) > MOST:
        raise RecipeError(f"model.arguments has {len(model.arguments)} keys; at most {MOST} are read.")
    for key, value in model.arguments.items():
        if isinstance(value, str) and len(value) > LONGEST:
            raise RecipeError(
                f"model.arguments: {quoted(key)} has {len(value)} characters; at most {LONGEST} are read."
            )
        largest = LARGEST_FACTOR if re.search("multiplier|factor|ratio", key) else LARGEST
        if isinstance(value, (int, float)) and not abs(value) <= largest:
            raise RecipeError(
                f"model.arguments: {quoted(key)} is {quoted(value)}, above {largest}. Choose a smaller one."
            )


def arguments(model: schema.Model, channels: int, image_size: int) -> dict[str, bool | int | float | str]:
    """Return what a model's constructor is given for images of [channels, image_size, image_size], but its classes."""
    size = {"img_size": image_size} if _fixes_input_size(model.name) else {}
    return {"in_chans": channels, **size, **model.arguments}


def _told(error: Exception) -> str:
    """Return what others say of arguments that may come from anywhere."""
    return printable(shortened(str(error), 500))


def _fixes_input_size(name: str) -> bool:
    """Say whether the constructor must know the image size, as most vision transformers must."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise RecipeError(f"model.name={quoted(name)}: {_told(error)}. Leave out what follows the dot.") from error
    return config is not None and config.fixed_input_size
