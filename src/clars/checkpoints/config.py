"""`config.json` of a checkpoint, in the form in which timm reads models of the Hub."""

import inspect
from typing import Annotated, Literal

import timm
from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt
from torch import nn

from clars.data import Splits
from clars.errors import CheckpointError
from clars.models.factory import arguments
from clars.recipes.schema import Recipe, Settings

LARGEST = 16_384  # of a whole number among the arguments, so that no file can ask for a network without end
Names = str | tuple[str, ...] | None


class Pretrained(Settings):
    """How images are prepared for the network, and which of its layers are the first and the last."""

    input_size: tuple[Literal[1, 3], PositiveInt, PositiveInt]
    fixed_input_size: bool
    interpolation: Literal["bilinear"] = "bilinear"
    crop_pct: Literal[0.875, 1.0]
    crop_mode: Literal["center"] = "center"
    mean: tuple[FiniteFloat, ...]
    std: tuple[PositiveFloat, ...]
    num_classes: PositiveInt
    pool_size: None = None
    first_conv: Names
    classifier: Names
    custom_load: Literal[False] = False
    license: Literal["apache-2.0"] = "apache-2.0"


class Config(Settings):
    """What timm needs to build the network again. Keys by which timm could be led to other files are not among it."""

    architecture: str
    num_classes: PositiveInt
    num_features: PositiveInt
    label_names: Annotated[tuple[str, ...], Field(max_length=100_000)] | None = None
    model_args: dict[str, bool | int | float | str]
    pretrained_cfg: Pretrained


def describe(recipe: Recipe, network: nn.Module, splits: Splits) -> Config:
    """Return the configuration of a network that was built from a recipe for the classes of its data."""
    data, known = recipe.data, network.pretrained_cfg
    return Config(
        architecture=architecture(recipe),
        num_classes=splits.num_classes,
        num_features=network.num_features,
        label_names=splits.class_names,
        model_args=arguments(recipe.model, data.channels, data.image_size),
        pretrained_cfg=Pretrained(
            input_size=(data.channels, data.image_size, data.image_size),
            fixed_input_size=known["fixed_input_size"],
            crop_pct=crop(recipe),
            mean=splits.mean,
            std=splits.std,
            num_classes=splits.num_classes,
            first_conv=known["first_conv"],
            classifier=known["classifier"],
        ),
    )


def architecture(recipe: Recipe) -> str:
    """Return timm's name of the network, without the tag of weights that a recipe's may carry."""
    return recipe.model.name.partition(".")[0]


def crop(recipe: Recipe) -> float:
    """Return the share of the shorter side that evaluation keeps; see `clars.data.transforms.build`."""
    return 0.875 if recipe.data.augmentation == "imagenet" else 1.0


def check(config: Config, recipe: Recipe) -> None:
    """Check that a configuration is that of a recipe.

    Raises:
        CheckpointError: it builds another network, or prepares images in another way.
    """
    data, pretrained = recipe.data, config.pretrained_cfg
    own = set(inspect.signature(timm.create_model).parameters)  # such as checkpoint_path, which names a file to load
    if refused := sorted(own & recipe.model.arguments.keys()):
        raise CheckpointError(f"model.arguments of the recipe: {', '.join(refused)} is no part of an architecture.")
    if large := [key for key, value in recipe.model.arguments.items() if type(value) is int and value > LARGEST]:
        raise CheckpointError(f"model.arguments of the recipe: {large[0]} is above {LARGEST}.")
    pairs = {
        "architecture": (config.architecture, architecture(recipe)),
        "model_args": (config.model_args, arguments(recipe.model, data.channels, data.image_size)),
        "input_size": (pretrained.input_size, (data.channels, data.image_size, data.image_size)),
        "crop_pct": (pretrained.crop_pct, crop(recipe)),
        "num_classes": (pretrained.num_classes, config.num_classes),
        "mean": (len(pretrained.mean), data.channels),
        "std": (len(pretrained.std), data.channels),
        "label_names": (len(config.label_names or range(config.num_classes)), config.num_classes),
    }
    for key, (found, wanted) in pairs.items():
        if found != wanted:
            raise CheckpointError(f"config.json: {key} is {found!r}; by recipe and classes it is {wanted!r}.")
