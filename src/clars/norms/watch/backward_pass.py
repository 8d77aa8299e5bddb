"""The backward pass under way: what it measures, what it must not add up, and what its beginning shows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.autograd import Variable

from clars.errors import UnsupportedLayerError
from clars.norms.estimator import Estimator
from clars.norms.watch.accumulator import Accumulator
from clars.norms.watch.registry import REGISTRY
from clars.norms.watch.slowness import Slowness
from clars.sharding.gradients import any_left


@dataclass
class Shortcuts:
    """What is there for speed alone; `benchmarks/ablation.py` measures what it brings.

    Attributes:
        repeated_calls: a call of the step before is recognised by its arguments (see `repeated_call`).
        known_modules: where a module of torch makes one, its forward need not run (see `modules`).
    """

    repeated_calls: bool = True
    known_modules: bool = True


class BackwardPass:
    """The backward pass under way: which one it is, how many examples its layers see, and which are measured.

    A pass is named by autograd's number for it; a part that is recomputed inside a pass (activation checkpointing)
    belongs to that pass. `batch` is the number of examples of the forward that runs, or ran last; None where its inputs
    do not tell.
    """

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator
        self.shortcuts = Shortcuts()
        self.number: int | None = None
        self.examples = 0
        self.first = ""
        self.batch: int | None = None
        self.slowness: Slowness | None = None
        self.measure, self.blocks = estimator.everything, 1
        self.members: list[int] = []  # the numbers of the accumulators that share it
        self.refused: dict[str, str] = {}  # layers, and what they do in this pass that has no exact norm
        self.gathered: dict[str, str] | None = None  # of all passes, where they are not to raise an error
        self.remedy: Callable[[Sequence[str]], str] = lambda layers: ""  # what to do about layers that are refused

    def problem_of(self, examples: int) -> str | None:
        """Return what is wrong with a layer that sees so many examples; None where the model's input has as many."""
        if self.batch is None or examples == self.batch:
            return None
        return f"sees {examples} examples where the model's input has {self.batch}."

    def enter(self, number: int, examples: int, layer: str) -> bool:
        """Begin a pass, or go on with it; refuse a layer that sees another number of examples than the first one."""
        if number != self.number:
            if self.slowness is not None:
                self.slowness.end_pass()
            self.look()  # now: in the midst of the pass its gradients arrive
            self.number, self.examples, self.first = number, examples, layer
            self.measure, self.blocks = self.estimator.draw(examples)
        if examples == self.examples:
            return True
        self.refuse(
            layer,
            f"sees {examples} examples where layer {self.first!r} sees {self.examples} in the same backward pass. "
            "Where an example has several rows, say so: views= of ExampleNorms for a batch of several views of each.",
        )
        return False

    def look(self) -> None:
        """Drop what belongs to gradients that are gone: before those of a new pass arrive, or to read the sums."""
        there = [member for member in self._accumulators() if member.look()]
        if there:
            for member, left in zip(there, any_left([member.gradients for member in there])):
                member.keep_if(left)

    def refuse(self, layer: str, problem: str) -> None:
        """Refuse a layer; the error that names all that are refused is raised when the pass is over."""
        if not self.refused:
            Variable._execution_engine.queue_callback(self._raise)
        self.refused[layer] = problem
        for member in self._accumulators():
            if member.layer == layer:
                member.reset()

    def _raise(self) -> None:
        refused, self.refused = self.refused, {}
        self.tell(refused)

    def tell(self, problems: Mapping[str, str]) -> None:
        """Refuse layers, named with what they do, in the model's order; or gather them, where somebody does.

        Raises:
            UnsupportedLayerError: unless they are gathered.
        """
        names = [member.layer for member in self._accumulators()]
        ordered = {name: problems[name] for name in names if name in problems}
        if self.gathered is None:
            raise UnsupportedLayerError(ordered, self.remedy(list(ordered)))
        self.gathered |= ordered

    def measured(self) -> tuple[int, int]:
        """Return the first of the examples to be measured, and the one after the last."""
        first, last, _ = self.measure.rows.indices(self.examples)
        return first, last

    def _accumulators(self) -> Iterator[Accumulator]:
        return filter(None, map(REGISTRY.get, self.members))
