"""Where the squared norms of one layer's examples add up, for as long as the gradients they belong to are there."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils.hooks import RemovableHandle

from clars.layers import Layer
from clars.native import where
from clars.norms.methods.measure import Measure
from clars.norms.watch.parts import Part, joint_squares
from clars.norms.watch.registry import REGISTRY
from clars.norms.watch.sums import PassSquares
from clars.precision import wide
from clars.sharding.gradients import Gradients, Own, any_left

if TYPE_CHECKING:
    from clars.norms.watch.backward_pass import BackwardPass
    from clars.norms.watch.tracked_parameter import TrackedParameter

COMPILED_TWICE = (
    "is used more than once in a compiled forward, where each example's contributions cannot be summed before the norm "
    "is taken. Leave torch.compile away, or compile the parts around it."
)
UNFORESEEN = (
    "is used more than once before one backward pass, for the first time. From now on the uses are summed: begin this "
    "step anew, with optimizer.zero_grad()."
)
SECOND_PASS = (
    "is reached by a second backward pass through the same forward pass (retain_graph=True). Add the losses up and "
    "call backward once."
)


MOST_ENTRIES = 200  # before one looks which of them still count


class Use:
    """A use of a layer in a forward, as long as its graph is there."""

    __slots__ = ("__weakref__",)


class Made(NamedTuple):
    """A call that a layer in C++ has made: by which rule, with how many rows for an example, and of what operands."""

    rule: Any
    rows: int
    operands: tuple


class Accumulator:
    """What was measured of one layer, an entry per backward pass whose gradient is still there.

    Squared norms are in the gradient's own units, squared, as the gradients are that add up beside them. Of a compiled
    model, whose backward pass runs no Python, the sums are kept as the gradient of a private leaf tensor instead. It is
    neither parameter nor buffer of the model.
    """

    def __init__(self, layer: Layer, current: "BackwardPass") -> None:
        self.layer = layer.name
        self.number = REGISTRY.add(self)
        self.text = str(self.number)  # for torch.compile, which takes numbers for something that may change
        current.members.append(self.number)
        self.current = current
        self.parameters: list[TrackedParameter] = []
        self.last_pass: int | None = None
        self.uses: WeakSet[Use] = WeakSet()  # that no backward pass has reached yet
        self.several = False  # whether uses are summed before the norm is taken
        self._uses_in_pass = 0
        self._parts: dict[str, list[Part]] = {}
        self._parts_of: tuple[Measure, int, int] | None = None  # what is measured of how many examples, in blocks
        self.made_by: Made | None = None  # how the last call by a layer in C++ came about
        self.called = False  # whether it may still wait for its backward pass
        self.measured: set[str] = set()  # local names of the parameters that ever entered a rule
        self.compiled_twice = False  # an error in the midst of a compilation would only send parts of it to Python
        self.entries: list[PassSquares] = []
        self.generation = 0  # how often there was something to forget
        self.gradients = Gradients([Own(layer.module, name) for name in layer.parameters])
        self.compiled_pass: int | None = None
        self._hooks: list[RemovableHandle] = []
        self._leaf = self._new_leaf(next(iter(layer.parameters.values())))

    def leaf(self, like: Tensor) -> Tensor:
        """Return the leaf, [4], on the device of `like`."""
        if self._leaf.device != like.device:
            self._leaf = self._new_leaf(like)
        return self._leaf

    def _new_leaf(self, like: Tensor) -> Tensor:
        leaf = torch.zeros(4, dtype=wide(like.dtype), device=like.device, requires_grad=True)
        leaf.register_hook(self._enter_compiled)
        return leaf

    def _enter_compiled(self, _: Tensor) -> None:
        """Note that a compiled backward pass measures, before anything of what it has found arrives.

        The arrivals come in any order, so that parameters have this hook as well as the leaf.
        """
        number = torch._C._current_graph_task_id()
        if number not in (self.compiled_pass, self.last_pass):  # a pass that adds here by Python has looked already
            self.compiled_pass = number
            self.measured |= {parameter.name for parameter in self.parameters}
            if self.look():
                self.keep_if(*any_left([self.gradients]))
        if not self._hooks:
            present = [parameter.present() for parameter in self.parameters]
            self._hooks = [value.register_hook(self._enter_compiled) for value in present if value.requires_grad]

    def close(self) -> None:
        """Leave the parameters as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def enter(self, number: int, examples: int, spent: bool) -> bool:
        """Note that this layer's backward runs; tell whether what it measures may be added.

        Args:
            number: of the backward pass.
            examples: how many rows the layer saw.
            spent: whether an earlier pass has measured this same call of the layer.
        """
        self.called = False
        self._uses_in_pass = self._uses_in_pass + 1 if number == self.last_pass else 1
        if number == self.last_pass and not self.several:
            self.several = True
            self.current.refuse(self.layer, UNFORESEEN)
            return False
        allowed = self.current.enter(number, examples, self.layer)
        if spent and (self.entries or self.compiled_total is not None):
            self.current.refuse(self.layer, SECOND_PASS)
            return False
        if not allowed:
            return False
        self.last_pass = number
        return True

    def add(self, squares: Tensor) -> None:
        """Add the squared norms [b] of the pass under way."""
        self.last_pass = self.current.number
        current = self.current
        measured = len(squares) if current.blocks > 1 else current.examples
        self.entries.append(PassSquares(squares, current.blocks, measured, current.estimator.group))

    @property
    def rows(self) -> int:
        """How many rows an example has in the last call by a layer in C++."""
        return self.made_by.rows

    def call_natively(self, made: Made) -> None:
        """Note that a layer in C++ has made a call."""
        self.made_by, self.called = made, True

    def waits(self) -> bool:
        """Tell whether a use of the layer may wait for its backward pass, other than what is recomputed in one."""
        return len(self.uses) > 0 or (self.called and torch._C._current_graph_task_id() == -1)

    def begin_use(self, recomputed: bool) -> "Use":
        """Note a use of the layer in a forward; what is recomputed in a backward pass is noted already."""
        use = Use()
        if not recomputed:
            self.several = self.several or self.waits()
            self.uses.add(use)
            self.called = False
        return use

    def defer(self, name: str, part: Part) -> None:
        """Take what a use of the layer's parameter `name` contributes in the pass under way, to be added up later."""
        self.last_pass = self.current.number
        if not self._parts:
            self._parts_of = (self.current.measure, self.current.examples, self.current.blocks)
            if torch._C._current_graph_task_id() == self.current.number:
                Variable._execution_engine.queue_callback(self.settle)
        self._parts.setdefault(name, []).append(part)

    def settle(self) -> None:
        """Take the norms of what the uses of a pass have contributed together."""
        if not self._parts:
            return
        parts, (measure, examples, blocks) = self._parts, self._parts_of
        self._parts = {}
        self.several = self._uses_in_pass > 1
        with torch.no_grad(), where.without_autocast(next(iter(parts.values()))[0].parameter):
            squares = sum(joint_squares(each, measure, examples) for each in parts.values())
        measured = len(squares) if blocks > 1 else examples
        self.entries.append(PassSquares(squares, blocks, measured, measure.group))

    def look(self) -> bool:
        """Drop what was added where there are no gradients; tell whether there are, and must be looked into."""
        self.settle()
        if not self.entries and self.compiled_total is None:
            return False
        if self.gradients.elsewhere():
            return False
        if self.gradients.present():
            return True
        self.reset()
        return False

    def keep_if(self, left: Tensor) -> None:
        """Keep what was added only where `left`, a boolean scalar tensor, is True."""
        for entry in self.entries:
            entry.keep_if(left)
        if len(self.entries) > MOST_ENTRIES:  # gradients that are zeroed in place leave them there; the device knows
            self.entries = [entry for entry in self.entries if entry.left]
        if self.compiled_total is not None:
            self._leaf.grad = torch.where(left, self._leaf.grad, 0.0)

    def scale(self, factor: float) -> None:
        """Multiply the norms that were added, as their gradients were."""
        self.settle()
        for entry in self.entries:
            entry.squares = entry.squares * factor**2
        if self.compiled_total is not None:
            self._leaf.grad = self._leaf.grad * self._leaf.new_tensor([factor, factor**2, 1.0, 1.0])

    def squares(self) -> list[Tensor]:
        """Return the squared norms that were added, a tensor per backward pass."""
        self.settle()
        return [entry.squares for entry in self.entries if entry.left is None or entry.left]

    def reset(self) -> None:
        """Forget what was measured."""
        self.generation += bool(self.entries) or self.compiled_total is not None
        self.entries.clear()
        self._parts = {}
        self._leaf.grad = None

    def kept(self) -> tuple[list[PassSquares], Tensor | None]:
        """Return what was added; see `put`."""
        self.settle()
        return [replace(entry) for entry in self.entries], self._leaf.grad

    def put(self, kept: tuple[list[PassSquares], Tensor | None]) -> None:
        """Take what was added to be what `kept` has returned, whatever became of it since."""
        entries, self._leaf.grad = kept
        self.entries = [
            PassSquares(each.squares, each.blocks, each.examples, each.group, each.left) for each in entries
        ]

    @property
    def compiled_total(self) -> Tensor | None:
        """The sums [4] that compiled backward passes left."""
        return self._leaf.grad
