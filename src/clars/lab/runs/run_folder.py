"""The folder of a run: its record, its lines of numbers, its weights, and the state to resume from.

The main process writes; the others call the same methods, which do nothing there.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from clars.errors import UserError
from clars.lab import digests, files
from clars.lab.runs import layout, metrics, resume
from clars.lab.runs.metrics import Mark, Metrics
from clars.lab.runs.record import Record
from clars.lab.runs.resume import State


@dataclass
class RunFolder:
    """The record, metrics, weights, and if asked for layers.jsonl and noise.jsonl; until it is over, the state.

    Args:
        path: the folder.
        identity: what must be the same when the run goes on; see `resume.identity`.
        writes: whether this process writes.
    """

    path: Path
    identity: dict[str, str]
    writes: bool
    _marks: dict[str, Mark] = field(default_factory=dict)  # of files of lines, at the state that the run goes on from
    _lines: dict[str, Metrics] = field(default_factory=dict)  # those that were written to since

    @property
    def state(self) -> Path:
        """The file of the state to go on from."""
        return self.path / layout.STATE

    def refuse_finished(self) -> None:
        """Raise UserError if a run is here that is over."""
        file = self.path / layout.RECORD
        if file.exists() and Record.read(file).status != "interrupted":
            raise UserError(
                f"{self.path} holds a run that is over. Choose another --out, or replace it by --overwrite."
            )

    def clear(self) -> None:
        """Take away the run that is replaced."""
        for name in (layout.RECORD, *layout.BESIDE.values(), layout.METRICS_CSV, layout.STATE) if self.writes else ():
            (self.path / name).unlink(missing_ok=True)

    def load(self) -> State:
        """Return the state to go on from; see `resume.read`. Takes away what a killed process was writing.

        Raises:
            UserError: the state cannot be used, or lines are missing that were written before it.
        """
        if self.writes:
            files.take_away_unfinished(self.path)
        state = resume.read(self.state, self.identity)
        for name, mark in state.marks.items():
            metrics.lines_before(self.path / name, mark)
        self._marks = state.marks
        if (found := len(self._epochs())) != state.progress.epoch:
            raise UserError(
                f"{self.state} is after {state.progress.epoch} epochs, and {layout.METRICS} had {found} lines then. "
                f"{resume.ANEW}"
            )
        return state

    def last_epoch(self) -> dict[str, object]:
        """Return the last line of `metrics.jsonl` at the state that the run goes on from."""
        return self._epochs()[-1]

    def save(self, state: State) -> None:
        """Write the state to go on from, once the lines that belong before it are on disk."""
        if self.writes:
            resume.write(self.state, replace(state, marks=self._sync()), self.identity)

    def log_epoch(self, line: dict[str, object]) -> None:
        """Add a line to `metrics.jsonl`."""
        self._append(layout.METRICS, line)
        if self.writes:
            metrics.write_csv(self.path / layout.METRICS, self.path / layout.METRICS_CSV)

    def log_layers(self, lines: list[dict[str, object]]) -> None:
        """Add lines to `layers.jsonl`."""
        self._append(layout.LAYERS, *lines)

    def log_noise(self, line: dict[str, object]) -> None:
        """Add a line to `noise.jsonl`."""
        self._append(layout.NOISE, line)

    def write(self, entry: Record) -> None:
        """Write the record of a run that is not over; it goes on, so what is beside the record may still change."""
        if self.writes:
            entry.sealed().write(self.path / layout.RECORD)

    def finish(self, entry: Record, weights: dict[str, Tensor]) -> None:
        """Write weights and record of a run that is over, and take away what only an unfinished run needs.

        Raises:
            UserError: something else has changed the lines since they were written.
        """
        if not self.writes:
            return
        files.write_tensors(self.path / layout.WEIGHTS, weights, {"format": "pt"})
        for name in self._marks:
            self._file(name)  # which cuts lines after the state that the run went on from
        written = self._sync()
        there = {key: name for key, name in layout.BESIDE.items() if name in written or key == "weights"}
        found = {key: digests.of_file(self.path / name) for key, name in there.items()}
        for key, name in there.items():
            if name in written and found[key] != written[name].sha256:
                raise UserError(f"{self.path / name} was changed while the run wrote it. {resume.ANEW}")
        entry.sealed(**found).write(self.path / layout.RECORD)
        self.state.unlink(missing_ok=True)

    def _epochs(self) -> list[dict]:
        mark = self._marks.get(layout.METRICS, Mark())
        return metrics.parsed(metrics.lines_before(self.path / layout.METRICS, mark), self.path / layout.METRICS)

    def _append(self, name: str, *lines: dict[str, object]) -> None:
        if self.writes:
            self._file(name).append(*lines)

    def _file(self, name: str) -> Metrics:
        if name not in self._lines:
            self._lines[name] = Metrics(self.path / name, self._marks.get(name, Mark()))
        return self._lines[name]

    def _sync(self) -> dict[str, Mark]:
        return self._marks | {name: lines.sync() for name, lines in self._lines.items()}
