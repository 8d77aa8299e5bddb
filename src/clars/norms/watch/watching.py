"""What the watched forward of a module needs to know of who tracks it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from torch import nn

from clars.norms.owners import Labels
from clars.norms.watch.decisions import Decisions
from clars.norms.watch.slowness import Slowness
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
        decisions: how calls with parameters were found to be made.
        slowness: of the slow exact rule; None where it is not to be used.
        examples: how many the inputs of the forward that runs have; None where these do not tell.
        unfollowed: whether nothing can be followed, as there are no values.
    """

    model: nn.Module
    active: bool
    parameters: dict[int, TrackedParameter]
    shortcuts: "Shortcuts"
    decisions: Decisions
    slowness: Slowness | None
    examples: int | None
    unfollowed: bool

    def word(self, layer: str) -> str | None:
        """Return what the user says of the rows of a layer's input."""

    def follow(self, module: nn.Module, inputs: Iterable) -> Labels | None:
        """Return the labels of a forward that is to be followed; None where all of its calls are known."""

    def refresh(self, module: nn.Module) -> None:
        """Note the tensors that are the module's parameters now."""

    def refresh_all(self) -> None:
        """Note those of all modules."""

    def is_watching(self) -> bool:
        """Tell whether a forward of this model is being watched by this thread."""

    def interception(self) -> "Interception | None":
        """Return what watches a forward of this model in this thread."""

    def begin_watching(self, module: nn.Module, args: tuple, kwargs: dict, interception: "Interception | None") -> None:
        """Mark a forward as watched, by what."""

    def end_watching(self) -> None:
        """Undo `begin_watching`."""

    def refuse(self, problems: dict[str, str]) -> None:
        """Refuse layers, named with what they do."""
