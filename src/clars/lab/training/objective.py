"""What a recipe trains a network for: classes, or agreement between views without labels. And how that is measured."""

from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from clars.lab import models
from clars.lab.data import Splits
from clars.lab.evaluation import Scores, dtype_of, evaluate
from clars.lab.launching.division import Division
from clars.lab.models.simsiam import simsiam
from clars.lab.recipes.schema import Recipe
from clars.lab.training.augmentation import BatchAugmentation
from clars.lab.training.probe import probe
from clars.lab.training.views import view


class Objective(Protocol):
    """Of one recipe. `network` is what is trained, `trunk` the part of it that timm made."""

    network: nn.Module
    trunk: nn.Module

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return what `loss` takes beside the model, from images and labels of a micro-batch on the device."""

    def loss(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        """Return the mean loss of a micro-batch; `model` is the network, perhaps within the wrapper of a strategy."""

    def scores(self, accelerator: Accelerator, model: nn.Module, splits: Splits, workers: int) -> Scores:
        """Measure a model; to be called in all processes."""

    def released(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return which weights of the network a run leaves: those of its trunk, by their names there."""


class Classification:
    """Cross entropy with the labels."""

    def __init__(self, recipe: Recipe, splits: Splits, division: Division, device: torch.device) -> None:
        self.recipe = recipe
        self.network = self.trunk = network(recipe, splits.num_classes)
        self.augment = BatchAugmentation(recipe, splits.num_classes, division, device)

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        images, labels = self.augment(images, labels)
        return images.to(dtype_of(self.network)), labels

    def loss(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        images, labels = inputs
        smoothing = 0.0 if self.augment.smooths else self.recipe.label_smoothing
        return F.cross_entropy(model(images).float(), labels, label_smoothing=smoothing)

    def scores(self, accelerator: Accelerator, model: nn.Module, splits: Splits, workers: int) -> Scores:
        return evaluate(accelerator, model, splits.test, self.recipe.evaluation.batch_size, workers)

    def released(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return weights


class SelfSupervision:
    """SimSiam between two views of each image; labels serve to measure alone."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.network = network(recipe, 0)
        self.trunk = self.network.backbone

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        settings, dtype = self.recipe.self_supervised, dtype_of(self.network)
        return tuple(view(images, settings.smallest_crop, settings.jitter).to(dtype) for _ in range(2))

    def loss(self, model: nn.Module, *inputs: Tensor) -> Tensor:
        return model(*inputs).float().mean()

    def scores(self, accelerator: Accelerator, model: nn.Module, splits: Splits, workers: int) -> Scores:
        return probe(model, splits, self.recipe.evaluation.batch_size, accelerator.device, workers)

    def released(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = "backbone."
        return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def objective(recipe: Recipe, splits: Splits, division: Division, device: torch.device) -> Objective:
    """Return the objective of a recipe, with a network that is drawn from torch's generator.

    Raises:
        UserError: the network cannot be built, or batches cannot be augmented as the recipe says.
    """
    if recipe.self_supervised is not None:
        return SelfSupervision(recipe)
    return Classification(recipe, splits, division, device)


def network(recipe: Recipe, classes: int) -> nn.Module:
    """Return what a recipe trains, for data of so many classes.

    Raises:
        RecipeError: it cannot be built.
    """
    data, settings = recipe.data, recipe.self_supervised
    classes = classes if settings is None else 0
    created = models.create(recipe.model, classes, data.channels, data.image_size)
    if settings is None:
        return created
    shape = (data.channels, data.image_size, data.image_size)
    return simsiam(created, shape, settings.projector, settings.predictor)
