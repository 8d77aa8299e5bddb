"""Progress bars on the main process: the runs of a launch, and the steps of the present run."""

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clars.errors import printable
from clars.lab import terminal
from clars.lab.launching.progress import Count


class Display:
    """Shows how far a launch is. Where output is no terminal, one line per finished run is printed instead.

    Args:
        runs: number of runs.
        shown: False on all processes but the main one.
        done: further runs of the same whole that are over already.
    """

    def __init__(self, runs: int, *, shown: bool, done: int = 0) -> None:
        self.console = terminal.console(stderr=True, quiet=not shown)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self.count = Count(runs, done)
        self.all = self.bars.add_task("runs", total=self.count.total, completed=done, note="")
        self.one = self.bars.add_task("", total=None, note="")

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def begin(self, title: str) -> None:
        """Show the name of the run that begins."""
        self.bars.reset(self.one, description=printable(title), note="")

    def step(self, step: int, steps: int) -> None:
        """Show how many optimizer steps are done."""
        self.bars.update(self.one, completed=step, total=steps)

    def epoch(self, number: int, epochs: int, loss: float, top1: float | None) -> None:
        """Show the numbers of the epoch that is over; `top1` is None where nothing was evaluated.

        A run that is alone leaves a line for each epoch; in a table's runs they would bury what was told.
        """
        note = f"loss {loss:.3f}" + ("" if top1 is None else f"  top-1 {top1:.2f} %")
        self.bars.update(self.one, note=note)
        if self.count.total == 1 and self.console.is_terminal:
            self.tell(f"epoch {number}/{epochs}  {note}")

    def end(self, title: str, outcome: str) -> None:
        """Print one line about a run that is over."""
        heading = self.count.next()
        self.bars.update(self.all, completed=self.count.done)
        self.tell(f"{heading} {title}: {outcome}")

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(printable(text), soft_wrap=True)
