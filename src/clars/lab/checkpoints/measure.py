"""Measuring a checkpoint again, by the evaluation that training uses."""

from torch import nn

from clars.errors import CheckpointError
from clars.lab import data
from clars.lab.data import Splits
from clars.lab.evaluation import Scores, evaluate
from clars.lab.launching import strategy
from clars.lab.recipes.schema import Recipe

POINTS = 0.05  # by which another device or version of torch may move the accuracy on a large set


def splits(recipe: Recipe) -> Splits:
    """Return the data of a recipe, as training reads it.

    Raises:
        DataError: it is not in reach.
    """
    return data.load(recipe.data, evaluation=recipe.evaluation.split)


def measure(recipe: Recipe, network: nn.Module, on: Splits) -> Scores:
    """Measure a network with its statistics as they are: those of a recalibrated run were saved with it."""
    accelerator = strategy.start()
    return evaluate(accelerator, network.to(accelerator.device), on.test, recipe.evaluation.batch_size)


def tolerance(on: Splits) -> float:
    """Return the difference in points that counts as the same accuracy: POINTS, or one example of a small set."""
    return max(POINTS, 100 / len(on.test))


def require(found: float, stated: float, within: float, what: str) -> None:
    """Raise CheckpointError unless two accuracies in percent agree."""
    if not abs(found - stated) <= within * (1 + 1e-9):
        raise CheckpointError(
            f"{what} is stated to reach {stated:.2f} % top-1, and reaches {found:.2f} % here; {within:.2f} points may "
            "differ. The weights are not those of the run, or the data are not."
        )
