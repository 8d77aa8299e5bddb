"""From the model section of a recipe to a network."""

import timm
import torch
from torch import nn

from clars.errors import RecipeError, nearest
from clars.recipes import schema


def create(model: schema.Model, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build a timm model for [n, channels, image_size, image_size] images and [n, num_classes] logits.

    Raises RecipeError for an unknown name or tag, for arguments that the model does not take and for images that it
    cannot take.
    """
    if not timm.is_model(model.name):
        raise RecipeError(
            f"model.name={model.name!r} is no timm model.{nearest(model.name, timm.list_models())}"
            " `timm.list_models()` lists the names."
        )
    if clash := sorted({"num_classes", "in_chans", "img_size"} & set(model.arguments)):
        raise RecipeError(
            f"model.arguments: {', '.join(clash)} cannot be set here; the classes, channels and image size"
            " follow from the data section. Remove it."
        )
    settings = arguments(model, channels, image_size)
    try:
        network = timm.create_model(model.name, num_classes=num_classes, **settings)
        with torch.no_grad():  # many a model finds out only here that it cannot take this image size
            network.eval()(torch.zeros(1, channels, image_size, image_size))
        return network.train()
    # Constructors reject what they are given in as many ways as there are authors.
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in model.arguments.items()) or "no arguments"
        raise RecipeError(
            f"model.name={model.name!r} cannot be built with model.arguments {given}"
            f" for {channels} channels of {image_size}x{image_size} pixels: {error}"
        ) from error


def arguments(model: schema.Model, channels: int, image_size: int) -> dict[str, bool | int | float | str]:
    """Return what a model's constructor is given for images of [channels, image_size, image_size], but its classes."""
    size = {"img_size": image_size} if _fixes_input_size(model.name) else {}
    return {"in_chans": channels, **size, **model.arguments}


def _fixes_input_size(name: str) -> bool:
    """Say whether the constructor must know the image size, as most vision transformers must."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise RecipeError(f"model.name={name!r}: {error}. Leave out what follows the dot.") from error
    return config is not None and config.fixed_input_size
