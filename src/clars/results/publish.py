"""The evidence that stays with a recipe folder: records and metrics, and what is made from them."""

from pathlib import Path

from clars.recipes.tables import ResolvedTable
from clars.results import runs, versions
from clars.results.figures import figure
from clars.results.render import write_csv, write_markdown
from clars.results.table import RowSummary, counted, summarise

FILES = ("table.md", "table.csv", "figure.png")


def generate(table: ResolvedTable, out: Path, target: Path | None = None) -> tuple[list[RowSummary], list[Path]]:
    """Write table.md, table.csv and figure.png from the runs under `out`.

    Args:
        table: whose rows to fill.
        out: the folder of the runs, in either form.
        target: where to write; `out` by default.

    Returns:
        The rows, and the files written.
    """
    markdown, comma, picture = files = [(target or out) / name for name in FILES]
    rows = summarise(table, out)
    write_markdown(rows, table, markdown)
    write_csv(rows, comma)
    figure(table, out, picture)
    return rows, files


def publish(table: ResolvedTable, out: Path, results: Path) -> list[Path]:
    """Copy the runs that count into `results`, a small file each, and generate table and figure there from them.

    Returns the files written by `generate`.
    """
    versions.check(table)
    versions.freeze(table)
    for row in table.rows:
        for run in counted(row, out):
            runs.publish(run, results, row.name)
    return generate(table, results)[1]
