"""From a tier of a table to its rows: each a recipe with the changes that make it this row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clars.lab.recipes.schema import Changes, Product, Tier

RATE = "schedule.base_rate"


@dataclass(frozen=True)
class Source:
    """Where a base rate is searched: a method at one batch of a recipe, or a listed recipe as it is.

    `key` is its name in search.json, `changes` the settings of the method, without the rate.
    """

    key: str
    recipe: str
    method: str
    changes: Changes


@dataclass(frozen=True)
class Plan:
    """A row before its recipe is loaded; `name` is the folder of its runs below that of the table.

    `network` is the recipe of a product's row, and `source` is None where no search decides the base rate.
    """

    label: str
    name: str
    recipe: str
    method: str
    changes: Changes
    network: str | None = None
    tuned: bool = False
    source: Source | None = None


def plans(tier: Tier, base_batches: Mapping[str, int]) -> Iterator[Plan]:
    """Yield the rows in order: those listed, then the product's by recipe, method and batch.

    Args:
        tier: the rows as `table.yaml` has them.
        base_batches: `schedule.base_batch` of each recipe of the product.
    """
    for row in tier.rows:
        name = row.name or row.recipe.rpartition("/")[2]
        yield Plan(row.label, name, row.recipe, name, tier.set | row.set)
    for recipe in tier.product.recipes if tier.product else ():
        yield from _of_recipe(tier, tier.product, recipe, base_batches[recipe])


def _of_recipe(tier: Tier, product: Product, recipe: str, base: int) -> Iterator[Plan]:
    for method, settings in product.methods.items():
        for batch in product.batches_of.get(recipe, product.batches):
            for tuned in (False, True) if method in product.tuned and batch != base else (False,):
                changes = _changes(tier, method, batch)
                searched = settings.rate_of or method
                source = None
                if tier.search and searched in tier.search.grid and RATE not in changes:
                    at = batch if tuned else base
                    source = Source(f"{recipe}/{searched}-{at}", recipe, searched, _changes(tier, searched, at))
                name = f"{recipe}/{method}-{batch}{'-tuned' if tuned else ''}"
                label = f"{settings.label}, tuned" if tuned else settings.label
                yield Plan(label, name, recipe, method, changes, recipe, tuned, source)


def _changes(tier: Tier, method: str, batch: int) -> Changes:
    settings = tier.product.methods[method]
    return tier.set | settings.set | {"batch_size": batch} | settings.at.get(batch, {})
