"""The evidence that stays with a recipe folder: records and metrics, and what is made from them."""

from dataclasses import dataclass
from pathlib import Path

from clars.lab import shipped
from clars.lab.runs import compact, layers
from clars.lab.tables import frozen
from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures import Drawn, draw
from clars.lab.tables.kinds import KIND
from clars.lab.tables.render import write_csv, write_differences, write_markdown
from clars.lab.tables.scaling import kept, lines
from clars.lab.tables.summary import RowSummary, by_row, summarise
from clars.lab.tables.verdict import Judgement, judge


@dataclass(frozen=True)
class Generated:
    """What is made of the runs of a table: its rows, what they say about its claims, its figures, the files written."""

    rows: list[RowSummary]
    judgements: list[Judgement]
    figures: list[Drawn]
    files: list[Path]


def generate(table: ResolvedTable, out: Path, target: Path | None = None, kind: str = KIND) -> Generated:
    """Write table.md, table.csv, the figures, and differences.csv where methods are compared, from the runs.

    Args:
        table: whose rows to fill.
        out: the folder of the runs, in either form.
        target: where to write; `out` by default.
        kind: of the figures, one of `KINDS`.
    """
    target = target or out
    rows, judgements, scaling = summarise(table, out), judge(table, out), lines(table, out)
    largest, figures = [kept(line, table.head.chance) for line in scaling], draw(table, out, target, kind)
    files = [target / "table.md", target / "table.csv"]
    write_markdown(rows, judgements, largest, table, files[0], figures)
    write_csv(rows, files[1])
    if judgements:
        files.append(target / "differences.csv")
        write_differences(judgements, files[-1])
    return Generated(rows, judgements, figures, files + [each.path for each in figures if each.path])


def keep(table: ResolvedTable, out: Path, results: Path, kind: str = KIND) -> list[Path]:
    """Copy the runs that count into `results`, a small file each, and generate table and figures there from them.

    Returns the files written by `generate`.

    Raises:
        UserError: the version is frozen and was changed; or as for `by_row`.
    """
    shipped.require_own(results)
    frozen.check(table)
    found = by_row(table, out)
    frozen.freeze(table)
    for name, own in found.items():
        for run in own:
            record = compact.write(run, results, name)
            if {"layers", "spread"} & set(table.head.figures):
                layers.write_compact(run, record)
    return generate(table, results, kind=kind).files
