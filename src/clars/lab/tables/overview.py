"""One page about all tables: what each claims, what is shown here, and what waits for somebody's hardware."""

from dataclasses import dataclass
from pathlib import Path

from clars.errors import printable
from clars.lab import shipped
from clars.lab.files import write_text
from clars.lab.launching.progress import clock
from clars.lab.recipes import registry
from clars.lab.runs.find import Run
from clars.lab.tables.definition import SEARCH, ResolvedTable, load_table, read_search, tiers
from clars.lab.tables.summary import counted
from clars.lab.tables.verdict import Judgement, judge

FILE = "README.md"
HEAD = """\
# Recipes

A folder holds one table: settings in `v1`, `v2`, ..., results beside them. Settings are frozen once results of them are
published. This page is generated from settings and records by `clars recipes --write`.

| table | claim examined | tier | here | time of all runs | command |
| --- | --- | --- | --- | --- | --- |
"""
STATUS = """\
*Reproduced here*: every row was run with every seed, whatever came out, and the records lie in the folder. *Runs, no
result*: the rows run to their end on made-up data, which shows that the code works. *Not run here*: waits for data or
hardware.
"""


@dataclass(frozen=True)
class Shown:
    """A tier of a table with its published runs, and what they say."""

    table: ResolvedTable
    runs: list[Run]
    wanted: int
    judgements: list[Judgement]

    @property
    def status(self) -> str:
        """Say in a few words what is shown here."""
        if not self.runs:
            return "not run here"
        if len(self.runs) < self.wanted:
            what, done = "in part", f"{len(self.runs)} of {self.wanted} runs"
        else:
            what = "reproduced here" if self.table.tier.result else "runs, no result"
            seeds = len(self.table.tier.seeds)
            done = f"{seeds} seeds" if seeds > 1 else "1 seed"
        return f"[{what}]({self.link / 'table.md'}), {done}"

    @property
    def seconds(self) -> float:
        """Return the time of all runs, those of the search too, one after the other."""
        search = read_search(self.table.results / SEARCH).get("budget", {}).get("wall_seconds", 0)
        return search + sum(run.record.wall_seconds for run in self.runs)

    @property
    def cost(self) -> str:
        """Return that time, and on what."""
        if not self.runs:
            return ""
        return f"{clock(self.seconds)} on {', '.join(sorted({run.record.device for run in self.runs}))}"

    @property
    def link(self) -> Path:
        """Return the folder of results as the page names it."""
        return self.table.results.relative_to(registry.root())


def overview() -> str:
    """Return the page."""
    shown = [_shown(load_table(folder, tier)) for folder in registry.folders() for tier in tiers(folder)]
    lines, verdicts, before = [], [], None
    for one in shown:
        table = one.table
        name, claim = (f"[{table.folder}]({table.folder})", table.head.claim) if table.folder != before else ("", "")
        before = table.folder
        cells = [name, claim, table.tier_name, one.status, one.cost, f"`clars table {table.command}`"]
        lines.append(f"| {' | '.join(cells)} |")
        verdicts += [f"- {table.command}: {each.comparison.claim} {each.sentence}" for each in one.judgements]
        if table.tier_name == tiers(table.folder)[-1]:
            lines += [f"| {' | '.join(_superseded(old, table))} |" for old in _older(table)]
    lite = sum(one.seconds for one in shown if one.table.tier_name == "lite" and one.runs)
    total = (
        f"All runs of the lite tiers: {clock(lite)} one after the other, searches included; `--parallel 2` halves it."
    )
    told = ["", "## Verdicts", "", *verdicts, "", "By the rule that stands below each table.", ""] if verdicts else []
    body = "\n".join([*lines, "", *([total, ""] if lite else []), STATUS.rstrip(), *told]).rstrip()
    return printable(HEAD + body) + "\n"


def _older(table: ResolvedTable) -> list[Shown]:
    """Return the tiers of the table's older versions that have published runs, newest first."""
    names = [f"{table.folder}@{version}" for version in registry.versions(f"{table.folder}/table")]
    others = [name for name in reversed(names) if not name.endswith(f"@{table.version}")]
    found = [_shown(load_table(name, tier)) for name in others for tier in tiers(name)]
    return [one for one in found if one.runs]


def _superseded(old: Shown, table: ResolvedTable) -> list[str]:
    older = old.table
    reason = f": {table.head.supersedes}" if table.head.supersedes else "."
    command = older.command.replace(older.folder, f"{older.folder}@{older.version}", 1)
    return [
        "",
        f"*{older.version}, superseded*{reason}",
        older.tier_name,
        old.status,
        old.cost,
        f"`clars table {command}`",
    ]


def write_overview() -> Path:
    """Write the page into the recipes folder."""
    path = registry.root() / FILE
    shipped.require_own(path)
    write_text(path, overview())
    return path


def _shown(table: ResolvedTable) -> Shown:
    runs = [run for row in table.rows for run in counted(row, table.results)]
    judged = judge(table, table.results) if runs else []
    return Shown(table, runs, len(table.rows) * len(table.tier.seeds), judged)
