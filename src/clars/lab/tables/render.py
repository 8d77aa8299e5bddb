"""A table as Markdown, as CSV and for the terminal."""

import csv
import io
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table

from clars.errors import printable
from clars.lab import terminal
from clars.lab.files import write_text
from clars.lab.tables.definition import ResolvedTable, read_search
from clars.lab.tables.figures import Drawn
from clars.lab.tables.scaling import NOTE as KEPT_NOTE
from clars.lab.tables.scaling import Kept
from clars.lab.tables.summary import RowSummary
from clars.lab.tables.verdict import Cell, Judgement, rule

HEADER = ("method", "batch", "warmup epochs", "peak rate", "top-1, %", "95 % interval", "n", "diverged")
TERMINAL_HEADER = ("method", "batch", "warmup", "rate", "top-1, %", "95 %", "n", "lost")
COLUMNS = (
    *("network", "label", "recipe", "batch", "warmup_epochs", "peak_rate"),
    *("top1_mean", "top1_sd", "top1_half_width_95", "n", "diverged", "status", "paper", "command", "evidence"),
)
DIFFERENCES = ("first", "second", "network", "batch", "rates", "n", "difference_mean", "half_width_95", "verdict")
NOTE = (
    "Top-1 accuracy after the last epoch: mean ± sample standard deviation over the n runs that finished, one a seed;"
    " the interval is of the mean, by Student's t. Runs that diverged are counted and are not in the mean."
)
USABLE = (
    "Usable are the rates around the best whose mean accuracy on the validation split is at most one standard error"
    " below it; the error is that of the seeds at one rate, pooled over the rates at which the method learns."
)
NO_RESULT = "No result: these runs show that every row runs to its end. Their numbers say nothing about the methods."


def write_markdown(
    rows: Sequence[RowSummary],
    judgements: Sequence[Judgement],
    scaling: Sequence[Kept],
    table: ResolvedTable,
    path: Path,
    figures: Sequence[Drawn] = (),
) -> None:
    """Write the table with its title, its claim, and links from each row to its records, relative to `path`.

    Below it stand the verdicts on what is compared, the largest batch of each method where the table asks, and its
    figures.
    """
    paper = table.head.paper
    others = (["paper, %"] if paper is not None else []) + (["public"] if any(row.public for row in rows) else [])
    told = [{"paper, %": "" if row.paper is None else f"{row.paper:g}", "public": row.public} for row in rows]
    lines = [
        [*_named(row), *cells(row), *(own[name] for name in others), _links(row, path) or row.status]
        for row, own in zip(rows, told)
    ]
    networks = ["network"] if any(row.network for row in rows) else []
    header = [*networks, *HEADER, *others, "evidence (seed)"]
    parts = [f"# {_title(table)}", table.head.claim, *([] if table.tier.result else [NO_RESULT])]
    parts += [_markdown(header, lines, left=len(networks) + 1, last="---"), NOTE]
    if judgements:
        parts += ["## Differences", *(part for judgement in judgements for part in _judged(judgement)), rule(table)]
    if scaling and "steps-to-target" in table.head.figures:
        body = [[one.network, one.label, str(one.smallest), f"{one.accuracy:.2f}", str(one.largest)] for one in scaling]
        header = ["network", "method", "smallest batch", "top-1 there, %", "largest batch"]
        parts += ["## Largest batch without loss", _markdown(header, body, left=2), KEPT_NOTE]
    if searched := _searched(table):
        header = ["network", "method", "batch", "best base rate", "usable base rates", "factor", "rates tried"]
        parts += ["## Rates", _markdown(header, searched, left=2), USABLE]
    if figures:
        parts += ["## Figures", *(part for one in figures for part in _figure(one, path))]
    origin = f"Generated from the records by `clars table {table.command}`, version {table.version} of the recipes."
    repeat = " The column `command` of [table.csv](table.csv) repeats any row." if networks else ""
    write_text(path, printable("\n\n".join([*parts, origin + repeat])) + "\n")


def write_csv(rows: Sequence[RowSummary], path: Path) -> None:
    """Write the table with unrounded numbers; cells without a value are empty, evidence is relative to `path`."""
    lines = []
    for row in rows:
        settings = [row.network, row.label, row.recipe, row.batch, row.warmup_epochs, row.peak_rate]
        numbers = [row.mean, row.sd, row.half_width, row.n, row.diverged, row.status, row.paper]
        evidence = " ".join(_relative(file, path) for file in row.evidence)
        command = "" if row.peak_rate is None else shlex.join(["clars", "run", row.recipe, *row.overrides])
        lines.append([*settings, *numbers, command, evidence])
    _write_rows(COLUMNS, lines, path)


def write_differences(judgements: Sequence[Judgement], path: Path) -> None:
    """Write every cell of what is compared, with unrounded numbers."""
    lines = [
        [one.first, one.second, cell.network, cell.batch, cell.rates, cell.n, cell.mean, cell.half_width, _told(cell)]
        for one in judgements
        for cell in one.cells
    ]
    _write_rows(DIFFERENCES, lines, path)


def as_rich(rows: Sequence[RowSummary], judgements: Sequence[Judgement], table: ResolvedTable) -> Group:
    """Return the table for the terminal, without the evidence, and the verdicts."""
    note = NOTE if table.tier.result else f"{NO_RESULT}\n{NOTE}"
    body = _terminal(_title(table), TERMINAL_HEADER, list(_below_networks(rows)), note)
    verdicts = (terminal.cell(f"{one.comparison.claim} {one.sentence}") for one in judgements)
    return Group(body, *verdicts, terminal.cell(rule(table) if judgements else "", style="dim"))


def _below_networks(rows: Sequence[RowSummary]) -> Iterator[list[str]]:
    """Yield the lines of the rows, with one that names the network before the first of each: a column has no place."""
    network = None
    for row in rows:
        if row.network != network:
            network = row.network
            yield [f"-- {network}"]
        yield cells(row, digits=3)


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
    return _terminal(title, header, lines, f"Best: {summary['rule']}.")


def cells(row: RowSummary, digits: int = 6) -> list[str]:
    """Return the texts of a row under `HEADER`, its rate with so many digits."""
    accuracy = row.status if row.mean is None else f"{row.mean:.2f}"
    return [
        row.label,
        str(row.batch),
        f"{row.warmup_epochs:g}",
        "" if row.peak_rate is None else f"{row.peak_rate:.{digits}g}",
        accuracy if row.sd is None else f"{accuracy} ± {row.sd:.2f}",
        "" if row.half_width is None else f"± {row.half_width:.2f}",
        str(row.n),
        str(row.diverged),
    ]


def _searched(table: ResolvedTable) -> list[list[str]]:
    """Return what the search found, a line for each method and batch; none where it says nothing of usable rates."""
    methods, lines = read_search(table.search)["methods"], []
    for source in table.sources if table.tier.product else ():
        found = methods.get(source.key, {})
        if usable := found.get("usable"):
            low, high = usable
            label, batch = table.tier.product.methods[source.method].label, source.key.rpartition("-")[2]
            edge = " (at the edge)" if found["at_edge"] else ""
            best, span = f"{found['winner']:g}{edge}", f"{low:g} to {high:g}"
            lines.append([source.recipe, label, batch, best, span, f"{high / low:g}", str(len(found["rates"]))])
    return lines


def _figure(figure: Drawn, path: Path) -> list[str]:
    """Return the picture of a figure, a link where a page cannot show its kind, and what was left out of it."""
    shown = "" if figure.path and figure.path.suffix == ".pdf" else "!"
    link = [f"{shown}[{figure.title}]({_relative(figure.path, path)})"] if figure.path else []
    return link + ([figure.note] if figure.note else [])


def _title(table: ResolvedTable) -> str:
    return table.head.title if table.tier.result else f"{table.head.title} (no result)"


def _named(row: RowSummary) -> list[str]:
    return [row.network] if row.network else []


def _told(cell: Cell) -> str:
    return cell.verdict if cell.n else "not run"


def _judged(judgement: Judgement) -> list[str]:
    header = ["network", "batch", "rates", "pairs", "difference, points", "95 % interval", "claim"]
    body = [
        [
            cell.network or "",
            str(cell.batch),
            cell.rates,
            str(cell.n),
            "" if cell.mean is None else f"{cell.mean:+.2f}",
            "" if cell.half_width is None else f"± {cell.half_width:.2f}",
            _told(cell),
        ]
        for cell in judgement.cells
    ]
    primary = "Primary: " if judgement.comparison.primary else ""
    return [
        f"**{primary}{judgement.comparison.claim}** {judgement.sentence}",
        _markdown(header, body, left=1, last="---"),
    ]


def _markdown(header: Sequence[str], body: Sequence[Sequence[str]], left: int, last: str = "---:") -> str:
    """Return a table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(header) - left - 1) + [last]
    lines = ([" ".join(cell.split()).replace("|", "&#124;") for cell in line] for line in (header, rule, *body))
    rows = (" | ".join(line) for line in lines)
    return "\n".join(f"| {row} |" for row in rows)


def _write_rows(header: Sequence[str], lines: Sequence[Sequence[object]], path: Path) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *lines])
    write_text(path, file.getvalue())


def _terminal(title: str, header: Sequence[str], lines: Sequence[Sequence[str]], note: str) -> Group:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    first, *others = header
    table.add_column(first, min_width=12, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*map(terminal.cell, line))
    return Group(terminal.cell(title, style="bold"), table, terminal.cell(note, style="dim"))


def _links(row: RowSummary, path: Path) -> str:
    # A record is seed0.json where it is published, seed0/run.json where it was run.
    seeds = (file.stem if file.stem.startswith("seed") else file.parent.name for file in row.evidence)
    return " ".join(
        f"[{seed.removeprefix('seed')}]({_relative(file, path)})" for seed, file in zip(seeds, row.evidence)
    )


def _relative(file: Path, path: Path) -> str:
    return Path(os.path.relpath(file, path.parent)).as_posix()
