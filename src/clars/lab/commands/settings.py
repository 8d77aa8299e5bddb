"""Answers to options that people try where a setting of the recipe is meant."""

from typing import Any

from typer.core import TyperCommand

# What other tools call a setting, by our name of it.
OTHER_NAMES = {
    **{"lr": "schedule.base_rate", "learning_rate": "schedule.base_rate", "warmup": "schedule.warmup_epochs"},
    **{"wd": "optimizer.weight_decay", "opt": "optimizer.name", "arch": "model.name", "dataset": "data.name"},
    **{"batch": "batch_size", "bs": "batch_size", "data_dir": "data.path", "model": "model.name"},
    **{"num_workers": "data.workers", "optimizer": "optimizer.name", "smoothing": "label_smoothing"},
}


class WithSettings(TyperCommand):
    """A command that takes a recipe's settings as KEY=VALUE, and says so where one is given as an option."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        """Parse, with a hint at the setting where an option is unknown."""
        given = list(arguments)
        try:
            return super().parse_args(context, arguments)
        except Exception as error:
            name = getattr(error, "option_name", None)
            if name is None or (key := setting(name)) is None:
                raise
            error.message = f"No such option: {name}. It is a setting of the recipe: {key}={_value(name, given)}"
            error.possibilities = None
            raise


def setting(option: str) -> str | None:
    """Return the whole name of the setting that an option such as --epochs or --lr means, None where there is none."""
    word = option.lstrip("-").replace("-", "_")
    known = _settings()
    if word in OTHER_NAMES:
        return OTHER_NAMES[word]
    found = [name for name in known if name == word or name.rpartition(".")[2] == word]
    return found[0] if found else None


def _settings() -> list[str]:
    """Return the names of all settings, those at the top of a recipe first."""
    from pydantic import BaseModel

    from clars.lab.recipes.schema import Recipe

    names = list(Recipe.model_fields)
    for section, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += [f"{section}.{key}" for key in field.annotation.model_fields]
    return names


def _value(option: str, arguments: list[str]) -> str:
    """Return what was given as the value of an option, `...` where there is none."""
    for place, word in enumerate(arguments):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and place + 1 < len(arguments) and not arguments[place + 1].startswith("-"):
            return arguments[place + 1]
    return "..."
