"""`config.json` of a checkpoint, in the form in which timm reads models of the Hub."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt
from timm.models import PretrainedCfg
from torch import nn

from clars.errors import CheckpointError, RecipeError, quoted
from clars.lab.data import EMBEDDED, Splits
from clars.lab.data.transforms import statistics
from clars.lab.models import factory
from clars.lab.models.factory import arguments
from clars.lab.recipes import schema
from clars.lab.recipes.checks import FASHION
from clars.lab.recipes.schema import Recipe, Settings

CLASSES = 1_000_000
ROUNDING = 1e-6  # of a statistic that the recipe names, in the single precision of tensors
DRAWN = 1e-3  # by which another version of a library may move the statistics of the data themselves
FLATTEST = 1e-3  # standard deviation of pixels in [0, 1]; those of a set with less could not be told apart
Names = str | tuple[str, ...] | None
Channels = tuple[float, ...]


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
    num_classes: Annotated[PositiveInt, Field(le=CLASSES)]
    num_features: PositiveInt
    label_names: Annotated[tuple[str, ...], Field(max_length=100_000)] | None = None
    model_args: dict[str, bool | int | float | str]
    pretrained_cfg: Pretrained

    def for_timm(self) -> dict[str, object]:
        """Return what a network that timm built from this carries as its `pretrained_cfg`."""
        known = self.pretrained_cfg.model_dump() | {"label_names": self.label_names}
        return PretrainedCfg(**known, architecture=self.architecture).to_dict()


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
    """Return the share of the shorter side that evaluation keeps; see `clars.lab.data.transforms.build`."""
    return 0.875 if recipe.data.augmentation == "imagenet" else 1.0


def check(config: Config, recipe: Recipe) -> None:
    """Check that a configuration is that of a recipe, as far as neither its network nor its data are needed.

    Raises:
        CheckpointError: it builds another network, prepares images in another way, or the recipe's is none to build.
    """
    data, pretrained = recipe.data, config.pretrained_cfg
    try:
        factory.check(recipe.model)
        wanted = arguments(recipe.model, data.channels, data.image_size)
        mean, std = _determined(data)
    except RecipeError as error:
        raise CheckpointError(f"The architecture of the recipe cannot be built: {error}") from None
    _require("recipe and classes", {
        "architecture": (config.architecture, architecture(recipe)),
        "model_args": (config.model_args, wanted),
        "input_size": (pretrained.input_size, (data.channels, data.image_size, data.image_size)),
        "crop_pct": (pretrained.crop_pct, crop(recipe)),
        "num_classes": (pretrained.num_classes, config.num_classes),
        "label_names": (len(config.label_names or range(config.num_classes)), config.num_classes),
        "the number of different label_names": (len(set(config.label_names or ())), len(config.label_names or ())),
    })  # fmt: skip
    _require_channels("mean", pretrained.mean, mean, data.channels, lambda value: 0 <= value <= 1, "from 0 to 1")
    _require_channels(
        "std", pretrained.std, std, data.channels, lambda value: FLATTEST <= value <= 1, f"from {FLATTEST} to 1"
    )


def check_network(config: Config, network: nn.Module) -> None:
    """Check what a configuration says of a network that was built from it.

    Raises:
        CheckpointError: it says something else.
    """
    known, pretrained = network.pretrained_cfg, config.pretrained_cfg
    keys = ("fixed_input_size", "first_conv", "classifier")
    pairs = {key: (getattr(pretrained, key), known[key]) for key in keys}
    _require("the architecture", {"num_features": (config.num_features, network.num_features), **pairs})


def check_data(config: Config, splits: Splits) -> None:
    """Check that a configuration names the classes of the data in their order, and prepares images as the data are.

    Raises:
        CheckpointError: it does not.
    """
    _require("the data", {
        "num_classes": (config.num_classes, splits.num_classes),
        "label_names": (config.label_names, splits.class_names),
    })  # fmt: skip
    for key in ("mean", "std"):
        found, wanted = getattr(config.pretrained_cfg, key), getattr(splits, key)
        if not _close(found, wanted, DRAWN):
            raise CheckpointError(f"config.json: {key} is {quoted(found)}; by the data it is {quoted(wanted)}.")


def _determined(data: schema.Data) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Return mean and standard deviation as far as a recipe alone determines them; else they are the images' own."""
    if data.name != FASHION and (data.path or data.name not in EMBEDDED):
        return statistics(data)
    return data.mean, data.std


def _require_channels(
    key: str, found: Channels, wanted: Sequence[float] | None, channels: int, sane: Callable[[float], bool], bounds: str
) -> None:
    if wanted is not None and not _close(found, wanted, ROUNDING):
        raise CheckpointError(f"config.json: {key} is {quoted(found)}; by the recipe it is {quoted(tuple(wanted))}.")
    if len(found) != channels or (wanted is None and not all(map(sane, found))):
        raise CheckpointError(
            f"config.json: {key} is {quoted(found)}; of pixels from 0 to 1 it is {channels} numbers {bounds}."
        )


def _close(found: Sequence[float], wanted: Sequence[float] | None, within: float) -> bool:
    return len(found) == len(wanted or ()) and all(
        math.isclose(one, other, rel_tol=within, abs_tol=within) for one, other in zip(found, wanted)
    )


def _require(by: str, pairs: dict[str, tuple[object, object]]) -> None:
    """Compare what was found with what is wanted, type by type: 1 is neither 1.0 nor true."""
    for key, (found, wanted) in pairs.items():
        if json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
            raise CheckpointError(f"config.json: {key} is {quoted(found)}; by {by} it is {quoted(wanted)}.")
