"""`table.yaml` of a recipe folder, with the recipes that its rows and its search name."""

from dataclasses import dataclass
from pathlib import Path

from clars.errors import RecipeError
from clars.recipes import registry
from clars.recipes.load import Resolved, load, read_file, validate
from clars.recipes.schema import Row, Search, Table


@dataclass(frozen=True)
class ResolvedTable:
    """A table with its origin and its recipes, by the names that `table.yaml` gives them."""

    folder: str
    version: str
    path: Path
    sha256: str
    table: Table
    recipes: dict[str, Resolved]

    @property
    def results(self) -> Path:
        """The folder of published results."""
        return self.path.parents[1] / "results"

    @property
    def rows(self) -> list[tuple[Row, Resolved]]:
        """The rows in order, each with its recipe."""
        return [(row, self.recipes[row.recipe]) for row in self.table.rows]


def load_table(folder: str, version: str | None = None) -> ResolvedTable:
    """Read and check the table of a recipe folder, and every recipe it names.

    Args:
        folder: a folder of the recipes root; `folder@v1` is understood as well.
        version: the version, such as `v1`; the newest one by default.

    Raises:
        RecipeError: no such folder or version; or the table, or a recipe of it, cannot be used.
    """
    folder, _, suffix = folder.partition("@")
    version, path = registry.find_table(folder, version or suffix)
    data, sha256 = read_file(path)
    table = validate(Table, data, lambda key: str(path))
    _check_rows(table.rows, path)
    if table.search is not None:
        _check_search(table.search, path)
    named = [row.recipe for row in table.rows] + list(table.search.grid if table.search else ())
    recipes = {name: _member(name, folder, version, path) for name in named}
    return ResolvedTable(folder, version, path, sha256, table, recipes)


def _member(name: str, folder: str, version: str, path: Path) -> Resolved:
    """Load a recipe that stands beside the table; `folder/` before its name may be left out."""
    within, _, stem = name.rpartition("/")
    if within not in ("", folder):
        raise RecipeError(f"{path}: {name!r} lies elsewhere; a table takes recipes of its own folder.")
    try:
        return load(f"{folder}/{stem}@{version}")
    except RecipeError as error:
        raise RecipeError(f"{path} names {name!r}: {error}") from None


def _check_rows(rows: list[Row], path: Path) -> None:
    for key in ("label", "recipe"):
        values = [getattr(row, key) for row in rows]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise RecipeError(f"{path}: rows: the {key} {', '.join(twice)} stands twice.")


def _check_search(search: Search, path: Path) -> None:
    sizes = {name: len(set(rates)) for name, rates in search.grid.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items()) or "none"
        raise RecipeError(f"{path}: search.grid: every method needs equally many different rates, not {listed}.")
