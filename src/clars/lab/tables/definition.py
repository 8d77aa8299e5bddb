"""`table.yaml` of a recipe folder, with the recipes that its rows and its search name."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import NonNegativeFloat, PositiveFloat

from clars.errors import RecipeError
from clars.lab.recipes import registry
from clars.lab.recipes.load import Resolved, load, validate
from clars.lab.recipes.overrides import write
from clars.lab.recipes.reading import read_file
from clars.lab.recipes.schema import Settings
from clars.lab.tables.checks import wrong_head, wrong_tier
from clars.lab.tables.rows import RATE, Plan, Source, plans
from clars.lab.tables.schema import Changes, Head, SingleTable, Table, Tier

TIERS = ("lite", "medium", "full")
SEARCH = "search.json"


class _Searched(Settings, extra="ignore"):
    """What search.json must say of a method, whatever else it says."""

    recipe_sha256: str
    overrides: list[str] | None = None
    winner: PositiveFloat | None


class _Budget(Settings, extra="ignore"):
    wall_seconds: NonNegativeFloat


class _SearchRecord(Settings, extra="ignore"):
    methods: dict[str, _Searched]
    budget: _Budget | None = None


@dataclass(frozen=True)
class TableRow:
    """A row with its recipe. `lacking` says why its base rate is not known, where it is not."""

    plan: Plan
    resolved: Resolved
    lacking: str | None = None

    @property
    def label(self) -> str:
        """What the row is called."""
        return self.plan.label

    @property
    def name(self) -> str:
        """The folder of its runs below that of the table."""
        return self.plan.name


@dataclass(frozen=True)
class ResolvedTable:
    """One tier of a table with its origin. `head` is what it shares with the other tier.

    `searched` is the record of a search that counts in the place of the published one.
    """

    folder: str
    version: str
    tier_name: str
    path: Path
    sha256: str
    head: Head
    tier: Tier
    searched: Path | None = None

    @property
    def search(self) -> Path:
        """The record of the search from which base rates come."""
        return self.searched or self.results / SEARCH

    @property
    def results(self) -> Path:
        """The folder of published results."""
        return self.path.parents[1] / "results" / self.version / self.tier_name

    @property
    def command(self) -> str:
        """What the command line calls it."""
        return self.folder if self.tier_name == TIERS[0] else f"{self.folder} --tier {self.tier_name}"

    @cached_property
    def rows(self) -> list[TableRow]:
        """The rows in order, with the base rates that the published search has found."""
        recipes = self.tier.product.recipes if self.tier.product else ()
        bases = {name: self.load(name).recipe.schedule.base_batch for name in recipes}
        winners = read_search(self.search)["methods"]
        return [self._row(plan, winners) for plan in plans(self.tier, bases)]

    @cached_property
    def sources(self) -> list[Source]:
        """What the search decides, in order."""
        if self.tier.search and not self.tier.product:
            return [Source(self.load(name).full_name, name, name, self.tier.set) for name in self.tier.search.grid]
        return list({row.plan.source.key: row.plan.source for row in self.rows if row.plan.source}.values())

    def load(self, name: str, changes: Changes | None = None) -> Resolved:
        """Load a recipe that stands beside the table; `folder/` before its name may be left out."""
        within, _, stem = name.rpartition("/")
        if within not in ("", self.folder):
            raise RecipeError(f"{self.path}: {name!r} lies elsewhere; a table takes recipes of its own folder.")
        try:
            return load(f"{self.folder}/{stem}@{self.version}", write(changes or {}))
        except RecipeError as error:
            raise RecipeError(f"{self.path} names {name!r}: {error}") from None

    def _row(self, plan: Plan, winners: dict[str, dict]) -> TableRow:
        if plan.source is None:
            return TableRow(plan, self.load(plan.recipe, plan.changes))
        resolved, lacking = self.load(plan.source.recipe, plan.source.changes), None
        found = winners.get(plan.source.key, {})
        if found.get("winner") is None:
            lacking = "its base rate was not searched yet"
        elif (found["recipe_sha256"], found.get("overrides")) != (resolved.sha256, list(resolved.overrides)):
            lacking = f"{self.search} has searched its base rate with other settings"
        rate = {} if lacking else {RATE: found["winner"]}
        return TableRow(plan, self.load(plan.recipe, plan.changes | rate), lacking)


def load_table(folder: str, tier: str = TIERS[0], searched: Path | None = None) -> ResolvedTable:
    """Read and check one tier of the table of a recipe folder, and every recipe it names.

    Args:
        folder: a folder of the recipes root, in its newest version, or `folder@v1`.
        tier: "lite", "medium" or "full".
        searched: the record of a search to take base rates from, in the place of the published one.

    Raises:
        RecipeError: no such folder, version or tier; or the table, or a recipe of it, cannot be used.
    """
    folder, version, path, sha256, found = _read(folder)
    if tier not in found:
        raise RecipeError(f"{path}: has no tier {tier!r}; it has {' and '.join(found)}.")
    head, chosen = found[tier]
    if problems := [*wrong_head(head, [each for _, each in found.values()]), *wrong_tier(chosen)]:
        raise RecipeError("\n".join(f"{path}: {problem}" for problem in problems))
    table = ResolvedTable(folder, version, tier, path, sha256, head, chosen, searched)
    _ = table.rows, table.sources  # made here, so that what is wrong with a recipe is told here
    return table


def tiers(folder: str) -> list[str]:
    """Return the names of the tiers that a table has."""
    return list(_read(folder)[-1])


def _read(folder: str) -> tuple[str, str, Path, str, dict[str, tuple[Head, Tier]]]:
    folder, _, version = folder.partition("@")
    version, path = registry.find_table(folder, version)
    data, sha256 = read_file(path, aliases=True)
    if "tiers" not in data:
        single = validate(SingleTable, data, lambda key: str(path))
        return folder, version, path, sha256, {TIERS[0]: (single, single)}
    table = validate(Table, data, lambda key: str(path))
    given = {name: getattr(table.tiers, name) for name in TIERS}
    if not any(given.values()):
        raise RecipeError(f"{path}: tiers: there is none; describe lite, medium or full.")
    return folder, version, path, sha256, {name: (table, tier) for name, tier in given.items() if tier}


def read_search(path: Path) -> dict:
    """Return what a search.json says; nothing, with no methods, where there is none.

    Raises:
        RecipeError: the file is no record of a search.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"methods": {}}
        validate(_SearchRecord, found, lambda key: path.name)
        return found
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path} is no record of a search: {error} Restore it, or repeat `clars tune ... --publish`."
        ) from None
