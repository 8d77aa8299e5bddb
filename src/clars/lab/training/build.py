"""From the sections of a recipe to torch's objects."""

from timm.optim import Lamb
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clars.errors import RecipeError
from clars.lab.recipes.load import Resolved
from clars.lab.training.schedule import rate_factor
from clars.optim import CLARS, LARS

LAYERWISE = {"clars": CLARS, "lars": LARS}


def build_optimizer(resolved: Resolved, model: nn.Module) -> Optimizer:
    """Make the recipe's optimizer at its peak rate.

    Raises:
        RecipeError: the optimizer section does not fit the model, e.g. an override that matches no layer.
    """
    settings = resolved.recipe.optimizer
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.name == "lamb":
        betas = (settings.momentum, 0.999)
        return Lamb(trainable, lr=resolved.peak_rate, betas=betas, weight_decay=settings.weight_decay)
    shared = {
        "lr": resolved.peak_rate,
        "momentum": settings.momentum,
        "weight_decay": settings.weight_decay,
        "nesterov": settings.nesterov,
    }
    if settings.name == "sgd":
        return SGD(trainable, **(shared | {"nesterov": settings.nesterov and settings.momentum > 0}))
    own = {}
    if settings.name == "clars" and settings.estimator != "exact":
        own = {"estimator": settings.estimator, "fraction": settings.fraction}
    try:
        return LAYERWISE[settings.name](
            model,
            **shared,
            trust_coefficient=settings.trust_coefficient,
            layers=settings.layers,
            overrides=settings.overrides,
            **own,
        )
    except ValueError as error:
        raise RecipeError(f"{resolved.path}: optimizer: {error}") from error


def build_schedule(resolved: Resolved, optimizer: Optimizer, steps_per_epoch: int, done: int = 0) -> LambdaLR:
    """Make the schedule of the rate, one step of it per optimizer step, with `done` steps behind it."""
    recipe = resolved.recipe
    steps = recipe.epochs * steps_per_epoch
    scaling = resolved.peak_rate / recipe.schedule.base_rate
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    # last_epoch counts steps; the schedule is asked once more, after the last step, for a rate that is not used
    return LambdaLR(
        optimizer,
        lambda step: rate_factor(recipe.schedule, min(step, steps - 1), steps, steps_per_epoch, scaling),
        last_epoch=done - 1,
    )
