"""From a tier of a table to its rows: each a recipe with the changes that make it this row."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clars.lab.tables.schema import Changes, Product, Tier

RATE, SCALING = "schedule.base_rate", "schedule.scaling"


@dataclass(frozen=True)
class Source:
    """Where a base rate is searched: a method at one batch of a recipe, or a listed recipe as it is.

    `key` is its name in search.json, `changes` the settings of the method, without the rate, and `factor` the batch
    over the base batch.
    """

    key: str
    recipe: str
    method: str
    changes: Changes
    factor: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A row before its recipe is loaded; `name` is the folder of its runs below that of the table.

    `network` is the recipe of a product's row, and `source` is None where no search decides the base rate. `rates` says
    where its rate comes from: scaled by the recipe's schedule, linearly or by the root, or tuned at its batch.
    """

    label: str
    name: str
    recipe: str
    method: str
    changes: Changes
    network: str | None = None
    rates: Literal["scaled", "linear", "sqrt", "tuned"] = "scaled"
    source: Source | None = None

    @property
    def tuned(self) -> bool:
        """Whether the rate is the best at the row's own batch."""
        return self.rates == "tuned"


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
            for rates in _rates(product, method, batch == base):
                scaling = {SCALING: rates} if rates in ("linear", "sqrt") else {}
                changes = _changes(tier, method, batch) | scaling
                source = None
                if tier.search and (settings.rate_of or method) in tier.search.grid and RATE not in changes:
                    source = _source(
                        tier, recipe, settings.rate_of or method, batch if rates == "tuned" else base, base
                    )
                several = product.rates is not None and batch != base
                suffix = f"-{rates}" if several or (rates == "tuned" and product.rates is None) else ""
                label = f"{settings.label}, {rates}" if suffix else settings.label
                yield Plan(label, f"{recipe}/{method}-{batch}{suffix}", recipe, method, changes, recipe, rates, source)


def _rates(product: Product, method: str, at_base: bool) -> Sequence[str]:
    """Return where the rates of a method's rows at a batch come from."""
    if product.rates is None:
        return ("scaled", "tuned") if method in product.tuned and not at_base else ("scaled",)
    scaled = product.scaled is None or method in product.scaled
    if at_base:
        return ("tuned",) if scaled else ()
    return product.rates if scaled else [rates for rates in product.rates if rates == "tuned"]


def _source(tier: Tier, recipe: str, method: str, batch: int, base: int) -> Source:
    return Source(f"{recipe}/{method}-{batch}", recipe, method, _changes(tier, method, batch), batch / base)


def _changes(tier: Tier, method: str, batch: int) -> Changes:
    settings = tier.product.methods[method]
    return tier.set | settings.set | {"batch_size": batch} | settings.at.get(batch, {})
