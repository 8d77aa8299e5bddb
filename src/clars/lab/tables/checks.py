"""What the schema of a table cannot say: names that must fit together, and a search that is the same for all."""

from collections.abc import Iterable, Iterator, Sequence

from clars.errors import nearest
from clars.lab.tables.schema import Head, Product, Search, Tier

MOST_ROWS = 10_000


def wrong_head(head: Head, tiers: Sequence[Tier]) -> Iterator[str]:
    """Yield what is wrong with what the tiers share: methods that none of them has."""
    for name in ("accuracy-by-rate", "warmup-gain"):
        if name in head.figures and not all(tier.product and tier.search for tier in tiers):
            yield f"figures: {name} shows the search of a product; a tier has none. Leave it out."
    if "first-epoch" in head.figures and not all(tier.product for tier in tiers):
        yield "figures: first-epoch shows the methods of a product; a tier has none. Leave it out."
    known = [name for tier in tiers for name in (*row_names(tier), *(tier.product.methods if tier.product else ()))]
    for number, comparison in enumerate(head.comparisons):
        yield from _unknown(f"comparisons.{number}", (comparison.first, comparison.second), list(dict.fromkeys(known)))


def wrong_tier(tier: Tier) -> Iterator[str]:
    """Yield what is wrong with a tier, each with its key."""
    if not tier.rows and not tier.product:
        yield "rows: there are none; list them, or describe them as a product."
    for key, values in (("label", [row.label for row in tier.rows]), ("name", row_names(tier))):
        if twice := sorted({value for value in values if values.count(value) > 1}):
            remedy = " Give rows of one recipe names of their own." if key == "name" else ""
            yield f"rows: the {key} {', '.join(twice)} stands twice.{remedy}"
    yield from _repeated("seeds", tier.seeds)
    if tier.product:
        yield from _product(tier.product)
    if tier.search:
        yield from _repeated("search.seeds", tier.search.seeds)
        yield from _search(tier, tier.search)


def row_names(tier: Tier) -> list[str]:
    """Return the names of the listed rows."""
    return [row.name or row.recipe.rpartition("/")[2] for row in tier.rows]


def _product(product: Product) -> Iterator[str]:
    methods = product.methods
    rows = len(product.recipes) * len(methods) * len(product.batches)
    if rows > MOST_ROWS:
        yield f"product: these are {rows} rows; at most {MOST_ROWS} are read."
    yield from _repeated("product.recipes", product.recipes)
    yield from _repeated("product.batches", product.batches)
    for name, own in product.batches_of.items():
        yield from _repeated(f"product.batches_of.{name}", own)
    yield from _unknown("product.batches_of", product.batches_of, product.recipes)
    yield from _unknown("product.tuned", product.tuned, methods)
    yield from _unknown("product.scaled", product.scaled or (), methods)
    if product.rates is not None and product.tuned:
        yield "product.tuned: has no effect beside product.rates; leave it out."
    if product.rates is None and product.scaled is not None:
        yield "product.scaled: has no effect without product.rates; leave it out."
    batches = {batch for own in (product.batches, *product.batches_of.values()) for batch in own}
    for name, method in methods.items():
        if method.rate_of is not None:
            yield from _unknown(f"product.methods.{name}.rate_of", [method.rate_of], methods)
        if method.warmup_of is not None:
            yield from _unknown(f"product.methods.{name}.warmup_of", [method.warmup_of], methods)
        if unused := sorted(set(method.at) - batches):
            yield f"product.methods.{name}.at: no row has the batch {', '.join(map(str, unused))}."


def _search(tier: Tier, search: Search) -> Iterator[str]:
    sizes = {name: len(set(rates)) for name, rates in search.grid.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "none"
        yield f"search.grid: every method needs equally many different rates, not {listed}."
    if both := sorted(set(search.seeds) & set(tier.seeds)):
        yield f"search.seeds: {', '.join(map(str, both))} are seeds of the rows; choose others."
    if tier.product:
        yield from _unknown("search.grid", search.grid, tier.product.methods)
        unsearched = [name for name in tier.product.tuned if _searched(tier.product, name) not in search.grid]
        if unsearched:
            yield f"product.tuned: {', '.join(unsearched)} has no rates in search.grid."


def _repeated(key: str, values: Sequence[object]) -> Iterator[str]:
    if len(set(values)) < len(values):
        twice = sorted({value for value in values if values.count(value) > 1})
        yield f"{key}: {', '.join(map(str, twice))} stands twice; a run counts once."


def _searched(product: Product, name: str) -> str:
    method = product.methods.get(name)
    return method.rate_of or name if method else name


def _unknown(key: str, given: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    for name in given:
        if name not in known:
            yield f"{key}: {name!r} is none of {', '.join(known)}.{nearest(name, known)}"
