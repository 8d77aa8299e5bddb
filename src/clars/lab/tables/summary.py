"""What a table says, from records only: no number in it is typed by hand."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clars.lab import runs
from clars.lab.runs import Run
from clars.lab.runs.consistency import agree, mismatch, require_comparable
from clars.lab.tables.definition import ResolvedTable, TableRow


class SkippedRecord(UserWarning):
    """A record lies among a row's runs but was made with other settings than the row's."""


@dataclass(frozen=True)
class RowSummary:
    """One row: settings from its recipe, numbers from its records.

    `network` is given in a product only, `peak_rate` where the base rate is known. `mean`, `sd` (sample standard
    deviation, n - 1) and `half_width` (of the 95 % interval of the mean) are of the final top-1 accuracy in percent
    over the `n` finished runs; None where n is too small to form them. `evidence` holds the files the numbers come
    from, and `paper` the paper's top-1 where it is known, `public` what others report.
    """

    label: str
    recipe: str
    overrides: tuple[str, ...]
    network: str | None
    batch: int
    warmup_epochs: float
    peak_rate: float | None
    n: int
    mean: float | None
    sd: float | None
    half_width: float | None
    diverged: int
    evidence: tuple[Path, ...]
    paper: float | None = None
    public: str = ""

    @property
    def status(self) -> str:
        """Either "run", "diverged" where no run finished, or "not run" where there is none."""
        return "run" if self.n else "diverged" if self.diverged else "not run"


def summarise(table: ResolvedTable, out: Path) -> list[RowSummary]:
    """Return a summary of each row of `table` from the records under `out`.

    Raises:
        UserError: as for `by_row`.

    Warns:
        SkippedRecord: a record does not belong to the row's recipe as it is now; it is not counted.
    """
    found, paper, public = by_row(table, out), table.head.paper or {}, table.head.public
    return [_summary(row, found[row.name], paper.get(row.name), public.get(row.name, "")) for row in table.rows]


def by_row(table: ResolvedTable, out: Path) -> dict[str, list[Run]]:
    """Return what `counted` does, of each row by its name.

    Raises:
        UserError: as for `counted`; or the runs are of more than one precision or protocol.

    Warns:
        SkippedRecord: as for `summarise`.
    """
    found = {row.name: counted(row, out) for row in table.rows}
    require_comparable([run for own in found.values() for run in own])
    return found


def counted(row: TableRow, out: Path) -> list[Run]:
    """Return the finished and diverged runs of a row under `out`, by seed.

    Raises:
        UserError: a file is no record, or a record contradicts itself or its recipe.

    Warns:
        SkippedRecord: as for `summarise`.
    """
    found = []
    for run in runs.read(out, row.name):
        if reason := row.lacking or mismatch(run.record, row.resolved):
            warnings.warn(f"{run.path} is not counted: {reason}.", SkippedRecord, stacklevel=2)
            continue
        agree(run.record, row.resolved, run.path)
        if run.record.status != "interrupted":
            found.append(run)
    return found


def interval(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Return the half-width of the interval of the mean by Student's t; None for fewer than two values."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return None
    return float(stats.t.ppf((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n))


def _summary(row: TableRow, found: list[Run], paper: float | None, public: str) -> RowSummary:
    resolved = row.resolved
    finished = [run.record.final.top1 for run in found if run.record.status == "finished"]
    return RowSummary(
        label=row.label,
        recipe=resolved.full_name,
        overrides=resolved.overrides,
        network=row.plan.network,
        batch=resolved.recipe.batch_size,
        warmup_epochs=resolved.recipe.schedule.warmup_epochs,
        peak_rate=None if row.lacking else resolved.peak_rate,
        n=len(finished),
        mean=statistics.fmean(finished) if finished else None,
        sd=statistics.stdev(finished) if len(finished) > 1 else None,
        half_width=interval(finished),
        diverged=len(found) - len(finished),
        evidence=tuple(run.path for run in found),
        paper=paper,
        public=public,
    )
