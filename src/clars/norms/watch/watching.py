"""What the watched forward of a module needs to know of who tracks it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from torch import nn

from clars.norms.watch.tracked_parameter import TrackedParameter

if TYPE_CHECKING:
    from clars.norms.watch.backward_pass import Shortcuts
    from clars.norms.watch.interception import Interception


class Tracker(Protocol):
    """A tracker of a model, as its modules' forwards see it.

    Attributes:
        model: the outermost module that is tracked.
        active: whether tracking is on.
        parameters: the tracked parameters, by the id of the tensor that stands for each now.
        shortcuts: what is there for speed alone.
    """

    model: nn.Module
    active: bool
    parameters: dict[int, TrackedParameter]
    shortcuts: "Shortcuts"

    def refresh(self, module: nn.Module) -> None:
        """Note the tensors that are the module's parameters now."""

    def refresh_all(self) -> None:
        """Note those of all modules."""

    def is_watching(self) -> bool:
        """Tell whether a forward of this model is being watched by this thread."""

    def interception(self) -> "Interception | None":
        """Return what watches a forward of this model in this thread."""

    def begin_watching(self, inputs: Iterable, interception: "Interception | None") -> tuple[int, ...]:
        """Mark a forward as watched, by what; return what `end_watching` has to know."""

    def end_watching(self, before: tuple[int, ...]) -> None:
        """Undo `begin_watching`."""

    def refuse(self, problems: dict[str, str]) -> None:
        """Refuse layers, named with what they do."""
