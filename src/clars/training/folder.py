"""The folder of a run: its record, its lines of numbers, its weights, and the state to resume from.

The main process writes; the others call the same methods, which do nothing there.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from clars.errors import UserError
from clars.results import files, metrics, record
from clars.results.record import Record
from clars.training import checkpoint
from clars.training.checkpoint import Progress, State

WEIGHTS = "model.safetensors"
LAYERS = "layers.jsonl"


@dataclass
class RunFolder:
    """`run.json`, `metrics.jsonl`, `layers.jsonl` where asked for, `model.safetensors`, and the state while it runs.

    Args:
        path: the folder.
        identity: what must be the same when the run goes on; see `checkpoint.identity`.
        writes: whether this process writes.
    """

    path: Path
    identity: dict[str, str]
    writes: bool
    resumed: Progress = field(default=Progress())

    def refuse_finished(self) -> None:
        """Raise UserError if a run is here that is over."""
        file = self.path / record.FILE
        if file.exists() and Record.read(file).status != "interrupted":
            raise UserError(
                f"{self.path} holds a run that is over. Choose another --out, or replace it by --overwrite."
            )

    def clear(self) -> None:
        """Take away the run that is replaced."""
        for name in (record.FILE, metrics.FILE, LAYERS, WEIGHTS, checkpoint.FILE) if self.writes else ():
            (self.path / name).unlink(missing_ok=True)

    def load(self) -> State:
        """Return the state to go on from; see `checkpoint.read`. Takes away what a killed process was writing."""
        if self.writes:
            files.take_away_unfinished(self.path)
        state = checkpoint.read(self.path / checkpoint.FILE, self.identity)
        self.resumed = state.progress
        return state

    def save(self, state: State) -> None:
        """Write the state to go on from."""
        if self.writes:
            checkpoint.write(self.path / checkpoint.FILE, state, self.identity)

    def log_epoch(self, line: dict[str, object]) -> None:
        """Add a line to `metrics.jsonl`."""
        if self.writes:
            self._epochs.append(line)

    def log_layers(self, lines: list[dict[str, object]]) -> None:
        """Add lines to `layers.jsonl`."""
        if self.writes:
            self._layers.append(*lines)

    def write(self, entry: Record) -> None:
        """Write the record."""
        if self.writes:
            entry.write(self.path / record.FILE)

    def write_weights(self, tensors: dict[str, Tensor]) -> None:
        """Write the weights of a run that is over."""
        if self.writes:
            files.write_tensors(self.path / WEIGHTS, tensors, {"format": "pt"})

    def end(self) -> None:
        """Take away what only an unfinished run needs."""
        if self.writes:
            checkpoint.clear(self.path)

    @cached_property
    def _epochs(self) -> metrics.Metrics:
        return metrics.Metrics(self.path / metrics.FILE, resume_at=self.resumed.epoch or None)

    @cached_property
    def _layers(self) -> metrics.Metrics:
        return metrics.Metrics(self.path / LAYERS, "step", resume_at=self.resumed.step or None)
