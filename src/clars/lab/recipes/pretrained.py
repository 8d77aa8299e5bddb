"""What a recipe that begins with weights of timm takes from them: the mean and the deviation of their images."""

from collections.abc import Sequence

from clars.errors import RecipeError, quoted
from clars.lab.recipes.schema import Data, Recipe


def with_statistics(recipe: Recipe) -> Recipe:
    """Return the recipe with `data.mean` and `data.std` of the weights it begins with, unless it states its own.

    A single channel takes the means over the weights' channels.

    Raises:
        RecipeError: timm has no weights of that name.
    """
    if recipe.model.pretrained is not True:
        return recipe
    import timm  # long, and for nothing where a mistake is told before

    try:
        config = timm.get_pretrained_cfg(recipe.model.name)
    except RuntimeError as error:
        raise RecipeError(f"model.name={quoted(recipe.model.name)}: {error}") from error
    if config is None or not config.hf_hub_id:
        raise RecipeError(
            f"model.pretrained = true: timm has no weights of {quoted(recipe.model.name)} on the Hub. Name a model that"
            " has (`timm.list_pretrained()`), or a file."
        )
    own = {key: _per_channel(getattr(config, key), recipe.data) for key in ("mean", "std")}
    missing = {key: value for key, value in own.items() if getattr(recipe.data, key) is None}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=missing)})


def _per_channel(values: Sequence[float], data: Data) -> list[float]:
    return list(values) if len(values) == data.channels else [sum(values) / len(values)] * data.channels
