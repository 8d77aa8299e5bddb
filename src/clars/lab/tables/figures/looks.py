"""One look for each method of a table, in all of its figures: colour and marker; with warmup dashed and open."""

import json
from collections.abc import Hashable, Iterable, Mapping

from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.figures.style import look
from clars.lab.tables.schema import Product

Look = dict[str, object]
ORIGINS = {
    "scaled": "scaled rates",
    "none": "rates not scaled",
    "linear": "rates scaled linearly",
    "sqrt": "rates scaled by the root",
    "tuned": "tuned rates",
}
# What of a recipe is no setting of its method: what panels tell apart, and the warmup, which the line tells.
_APART = {"schedule": ("base_rate", "scaling", "warmup_epochs", "warmup_from"), "": ("description", "batch_size")}


def looks(table: ResolvedTable) -> dict[str, Look]:
    """Return how the lines and points of each method look, by the method's name.

    A product's method with warmup looks like the one without it, but for the line. Listed rows of the same settings
    are one method.
    """
    warm = {row.plan.method for row in table.rows if row.resolved.recipe.schedule.warmup_epochs}
    product = table.tier.product
    entries: dict[str, tuple] = {name: (_without(product, name, warm), "") for name in _methods(product)}
    for row in table.rows:
        schedule, batch = row.resolved.recipe.schedule, row.resolved.recipe.batch_size
        key = settings_of_method(row.resolved.recipe.model_dump(mode="json"))
        entries.setdefault(row.plan.method, (key, (batch, schedule.scaling)))
    found = numbers((key, (variant, name in warm)) for name, (key, variant) in entries.items())
    return {name: styled(number, name in warm) for name, number in zip(entries, found)}


def numbers(entries: Iterable[tuple[Hashable, Hashable]]) -> list[int]:
    """Return a number for each entry, a method and its variant: that of its method.

    Where an entry before has the same method and variant, so that the two would look alike, it has one of its own.
    """
    found: list[int] = []
    variants: dict[int, set[Hashable]] = {}
    first: dict[Hashable, int] = {}
    for method, variant in entries:
        number = first.setdefault(method, len(variants))
        if variant in variants.get(number, ()):
            number = len(variants)
        variants.setdefault(number, set()).add(variant)
        found.append(number)
    return found


def styled(number: int, warm: bool) -> Look:
    """Return the look of a number, with warmup dashed and its markers open."""
    return look(number) | ({"linestyle": "--", "markerfacecolor": "white"} if warm else {"linestyle": "-"})


def settings_of_method(settings: Mapping[str, object]) -> str:
    """Return what of a recipe's settings makes its method, as one text."""
    kept = {name: value for name, value in settings.items() if name not in _APART[""]}
    schedule = kept.get("schedule") or {}
    kept["schedule"] = {name: value for name, value in schedule.items() if name not in _APART["schedule"]}
    return json.dumps(kept, sort_keys=True)


def origin(row: TableRow) -> str:
    """Return where the rate of a row comes from, a key of `ORIGINS`."""
    return row.plan.rates if row.plan.network else row.resolved.recipe.schedule.scaling


def label(table: ResolvedTable, row: TableRow) -> str:
    """Return what a row's method is called, without the origin of its rate where a product says that."""
    return table.tier.product.methods[row.plan.method].label if row.plan.network else row.label


def _methods(product: Product | None) -> Iterable[str]:
    return product.methods if product else ()


def _without(product: Product, name: str, warm: set[str]) -> str:
    """Return the method that one is without its warmup: the one it names, or whose base rates it takes."""
    method = product.methods[name]
    if method.warmup_of:
        return method.warmup_of
    return method.rate_of if name in warm and method.rate_of and method.rate_of not in warm else name
