"""The folder of a checkpoint: what is in it, and how it is read without trusting it."""

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import timm
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from clars import models
from clars.checkpoints import config, header
from clars.checkpoints.config import Config
from clars.errors import CheckpointError, RecipeError
from clars.recipes.reading import parse
from clars.recipes.schema import Recipe
from clars.recipes.writing import dump
from clars.results.files import write_json, write_tensors, write_text
from clars.results.record import Record, first_problem

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
RECORD = "run.json"
RECIPE = "recipe.yaml"
FILES = (WEIGHTS, CONFIG, CARD, RECORD, RECIPE)
LIMIT = 8_000_000  # bytes of a file that is no weights

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files agree with each other; made by `read`, which checks that."""

    path: Path
    config: Config
    recipe: Recipe
    record: Record

    def network(self) -> nn.Module:
        """Return the network with its weights, in evaluation mode, as timm makes it from the folder."""
        return timm.create_model(f"local-dir:{self.path}", pretrained=True).eval()


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder and check all of it that can be checked without data.

    Raises:
        CheckpointError: a file is missing, too large, no ordinary file, or disagrees with the others.
    """
    for name in FILES:
        _require_file(folder / name)
    loaded = _parsed(Config, folder / CONFIG)
    recipe, record = _parsed(Recipe, folder / RECIPE), _parsed(Record, folder / RECORD)
    if _settings(record, folder) != recipe:
        raise CheckpointError(f"{folder / RECIPE} is not the recipe that {RECORD} says was run.")
    config.check(loaded, recipe)
    header.check(folder / WEIGHTS, architecture(recipe, loaded.num_classes).state_dict())
    return Checkpoint(folder, loaded, recipe, record)


def write(folder: Path, loaded: Config, recipe: Recipe, record: Record, weights: Mapping[str, Tensor]) -> None:
    """Write all files but the card."""
    write_tensors(folder / WEIGHTS, weights, {"format": "pt"})
    write_json(folder / CONFIG, loaded.model_dump(mode="json"))
    write_text(folder / RECIPE, dump(recipe.model_dump(mode="json")))
    record.write(folder / RECORD)


def architecture(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return the network of a recipe without memory for its weights."""
    try:
        with torch.device("meta"):
            return models.create(recipe.model, num_classes, recipe.data.channels, recipe.data.image_size)
    except RecipeError as error:
        raise CheckpointError(f"The architecture of the recipe cannot be built: {error}") from None


def _require_file(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint has the files {', '.join(FILES)}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path} is no ordinary file. A checkpoint has no links.")
    if path.name != WEIGHTS and found.st_size > LIMIT:
        raise CheckpointError(f"{path} has {found.st_size} bytes; at most {LIMIT} are read.")


def _parsed(schema: type[M], path: Path) -> M:
    try:
        content = path.read_text(encoding="utf-8")
        data = parse(content, str(path)) if path.suffix == ".yaml" else json.loads(content)
        return schema.model_validate(data)
    except ValidationError as error:
        raise CheckpointError(f"{path} cannot be used: {first_problem(error)}.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def _settings(record: Record, folder: Path) -> Recipe:
    try:
        return Recipe.model_validate(record.settings)
    except ValidationError as error:
        raise CheckpointError(f"{folder / RECORD}: settings: {first_problem(error)}.") from None
