"""A classifier that stays as it was initialised for the first epochs, as a way to start at a large rate."""

from torch import nn

from clars.errors import RecipeError, UserError
from clars.lab.recipes.load import Resolved


class FrozenHead:
    """Takes the classifier's gradients away while it is frozen, right before the optimizer steps.

    A parameter without a gradient is left out of the step by torch's optimizers and by ours: no movement, no momentum
    that comes into force later, no weight decay, no share in the statistics. `requires_grad` stays, so that
    DistributedDataParallel and FSDP2, which look at it once, average the same gradients throughout. ZeRO steps its own
    copy of the gradients, so there it is refused.

    Args:
        resolved: the recipe.
        model: any timm model, without the wrapper of a strategy.
        steps_per_epoch: optimizer steps in an epoch.

    Raises:
        RecipeError: the model does not tell its classifier, or has none.
    """

    def __init__(self, resolved: Resolved, model: nn.Module, steps_per_epoch: int) -> None:
        epochs = resolved.recipe.schedule.frozen_head_epochs
        self.steps = round(epochs * steps_per_epoch)
        self.modules = _classifiers(model) if epochs else []
        if epochs and not any(True for module in self.modules for _ in module.parameters()):
            raise RecipeError(
                f"{resolved.path}: schedule.frozen_head_epochs = {epochs:g}: {resolved.recipe.model.name} has no"
                " classifier with parameters. Leave it out."
            )

    def check(self, strategy: str) -> None:
        """Raise UserError under a strategy that does not step what is in `.grad`."""
        if self.steps and strategy.startswith("zero"):
            raise UserError(f"schedule.frozen_head_epochs cannot be had under {strategy}. Launch with ddp or fsdp2.")

    def before_step(self, step: int) -> None:
        """Take the gradients away if the optimizer step after `step` others is one without the classifier."""
        if step < self.steps:
            for module in self.modules:
                module.zero_grad(set_to_none=True)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    found = model.get_classifier() if hasattr(model, "get_classifier") else []
    return list(found) if isinstance(found, tuple | list) else [found]
