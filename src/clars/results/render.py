"""A table as Markdown, as CSV and for the terminal."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clars.recipes.tables import ResolvedTable
from clars.results.files import write_text
from clars.results.search import RULE
from clars.results.table import RowSummary

HEADER = ("method", "batch", "warmup epochs", "peak rate", "top-1, %", "95 % interval", "n", "diverged")
TERMINAL_HEADER = ("method", "batch", "warmup", "rate", "top-1, %", "95 %", "n", "diverged")
COLUMNS = (
    *("label", "recipe", "batch", "warmup_epochs", "peak_rate"),
    *("top1_mean", "top1_sd", "top1_half_width_95", "n", "diverged", "status", "evidence"),
)
NOTE = (
    "Top-1 accuracy after the last epoch: mean ± sample standard deviation over the n runs that finished, one a seed;"
    " the interval is of the mean, by Student's t. Runs that diverged are counted and are not in the mean."
)


def write_markdown(rows: Sequence[RowSummary], table: ResolvedTable, path: Path) -> None:
    """Write the table with its title, its claim, and links from each row to its records, relative to `path`."""
    lines = [[*cells(row), _links(row, path) or row.status] for row in rows]
    header = [*HEADER, "evidence (seed)"]
    body = [header, ["---"] + ["---:"] * 7 + ["---"], *lines]
    text = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in body)
    origin = f"Generated from the records by `clars table {table.folder}`, version {table.version} of the recipes."
    write_text(path, f"# {table.head.title}\n\n{table.head.claim}\n\n{text}\n\n{NOTE}\n\n{origin}\n")


def write_csv(rows: Sequence[RowSummary], path: Path) -> None:
    """Write the table with unrounded numbers; cells without a value are empty, evidence is relative to `path`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        numbers = [row.batch, row.warmup_epochs, row.peak_rate, row.mean, row.sd, row.half_width, row.n, row.diverged]
        evidence = " ".join(_relative(file, path) for file in row.evidence)
        writer.writerow([row.label, row.recipe, *numbers, row.status, evidence])
    write_text(path, file.getvalue())


def as_rich(rows: Sequence[RowSummary], title: str) -> Group:
    """Return the table for the terminal, without the evidence."""
    return _terminal(title, TERMINAL_HEADER, [cells(row) for row in rows], NOTE)


def search_as_rich(summary: dict, title: str) -> Group:
    """Return what search.json says for the terminal."""
    lines = []
    for full_name, method in summary["methods"].items():
        name = full_name.removeprefix(f"{summary['table']}/")
        for entry in method["rates"]:
            won = entry["rate"] == method["winner"]
            note = ("best, at edge" if method["at_edge"] else "best") if won else ""
            mean = "not run" if entry["mean"] is None else f"{entry['mean']:.2f}"
            lines.append([name, f"{entry['rate']:g}", mean, str(entry["diverged"]), note])
            name = ""
    header = ("recipe", "base rate", "top-1, %", "diverged", "")
    return _terminal(title, header, lines, f"Best: {RULE}.")


def cells(row: RowSummary) -> list[str]:
    """Return the texts of a row under `HEADER`."""
    accuracy = row.status if row.mean is None else f"{row.mean:.2f}"
    return [
        row.label,
        str(row.batch),
        f"{row.warmup_epochs:g}",
        "" if row.peak_rate is None else f"{row.peak_rate:g}",
        accuracy if row.sd is None else f"{accuracy} ± {row.sd:.2f}",
        "" if row.half_width is None else f"± {row.half_width:.2f}",
        str(row.n),
        str(row.diverged),
    ]


def _terminal(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], note: str) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    first, *others = header
    table.add_column(first, min_width=15)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return Group(Text(title, style="bold"), table, Text(note, style="dim"))


def _links(row: RowSummary, path: Path) -> str:
    # A record is seed0.json where it is published, seed0/run.json where it was run.
    seeds = (file.stem if file.stem.startswith("seed") else file.parent.name for file in row.evidence)
    return " ".join(
        f"[{seed.removeprefix('seed')}]({_relative(file, path)})" for seed, file in zip(seeds, row.evidence)
    )


def _relative(file: Path, path: Path) -> str:
    return Path(os.path.relpath(file, path.parent)).as_posix()
