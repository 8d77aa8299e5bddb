"""Where the contributions of one layer add up, and the checks that they may be added."""

from collections.abc import Iterable, Iterator
from itertools import count
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor

from clars.errors import UnsupportedLayerError
from clars.layers import Layer
from clars.norms.estimator import Estimator
from clars.norms.product import wide
from clars.norms.rule import Measure


class BackwardPass:
    """The backward pass under way: which one it is, how many examples its layers see, and which are measured.

    A pass is named by autograd's number for it; a part that is recomputed inside a pass (activation checkpointing)
    belongs to that pass. `batch_sizes` are those of the inputs of the model's forward while that runs.
    """

    def __init__(self, estimator: Estimator) -> None:
        self.estimator = estimator
        self.number: int | None = None
        self.examples = 0
        self.first = ""
        self.batch_sizes: tuple[int, ...] = ()
        self.gradients_stay = True  # in the parameters, until the user clears them; some strategies move them away
        self.measure, self.blocks = Measure(), 1
        self.tracker = next(_NUMBERS)
        self.members: list[int] = []  # the numbers of the accounts that share it
        self.lent: int | None = None  # the pass that was last lent to compiled layers

    def check_rows(self, rows: int, layer: str) -> None:
        """Refuse a layer whose input has not as many rows as the input of the model."""
        if rows == 0 or (self.batch_sizes and rows not in self.batch_sizes):
            sizes = " or ".join(map(str, self.batch_sizes)) or "some"
            raise UnsupportedLayerError(
                f"sees {rows} rows where the model's input has {sizes}. Dimension 0 of every layer's input must be the "
                "batch.",
                layer,
            )

    def enter(self, number: int, examples: int, layer: str) -> None:
        """Begin a pass, or refuse a layer that sees another number of examples than the first layer of the pass."""
        if number != self.number:
            self.number, self.examples, self.first = number, examples, layer
            self.measure, self.blocks = self.estimator.draw(examples)
            for account in self._accounts():
                account.over = account.was_cleared()  # now: in the midst of the pass gradients arrive
        elif examples != self.examples:
            raise UnsupportedLayerError(
                f"sees {examples} rows where layer {self.first!r} sees {self.examples} in the same backward pass. "
                "Dimension 0 of every layer's input must be the batch.",
                layer,
            )

    def lend(self) -> tuple[int, int]:
        """Have compiled layers book the rest of this pass without asking (see cpu/ledger.h).

        Returns the first of the examples to be measured, and the one after the last.
        """
        first, last, _ = self.measure.rows.indices(self.examples)
        if self.lent != self.number:
            if self.lent is None:
                finalize(self, torch.ops.clars.collect, self.tracker).atexit = False
            self.lent = self.number
            waiting = [account.number for account in self._accounts() if account.last_pass != self.number]
            torch.ops.clars.lend(self.tracker, waiting, self.number, self.examples, first, last)
        return first, last

    def catch_up(self) -> None:
        """Enter what compiled layers have booked without asking."""
        if self.lent is not None:
            for number, squares in zip(*torch.ops.clars.collect(self.tracker)):
                if (account := ACCOUNTS.get(number)) is not None:
                    account.note(squares)

    def _accounts(self) -> "Iterator[Account]":
        return filter(None, map(ACCOUNTS.get, self.members))


# The accounts there are, by the numbers under which the compiled functions know them.
ACCOUNTS: "WeakValueDictionary[int, Account]" = WeakValueDictionary()
_NUMBERS = count(1)


class Account:
    """What was measured of one layer since the last reset: the examples' squared norms, a tensor per backward pass.

    They are in the gradient's own units, squared, as the gradients are that add up beside them. Of a compiled model,
    whose backward pass runs no Python, the sums are kept as the gradient of a private leaf tensor instead. It is
    neither parameter nor buffer of the model.
    """

    def __init__(self, layer: Layer, current: BackwardPass) -> None:
        self.layer = layer.name
        self.number = next(_NUMBERS)
        ACCOUNTS[self.number] = self
        current.members.append(self.number)
        self.current = current
        self.last_pass: int | None = None
        self.over = False  # whether what is booked belongs to gradients that were cleared before the pass under way
        self.measured: set[str] = set()  # local names of the parameters that ever entered a rule
        self.compiled_twice = False  # an error in the midst of a compilation would only send parts of it to Python
        self.booked: list[tuple[Tensor, int]] = []  # squared norms [b], and of how many blocks they are one
        self._module, self._parameters = layer.module, layer.parameters
        self._leaf = _new_leaf(next(iter(layer.parameters.values())))

    def leaf(self, like: Tensor) -> Tensor:
        """Return the leaf, [3], on the device of `like`."""
        if self._leaf.device != like.device:
            self._leaf = _new_leaf(like)
        return self._leaf

    def enter(self, number: int, examples: int) -> None:
        """Note that this layer's backward runs; refuse a second time in one pass: norms of parts do not add."""
        self.current.catch_up()
        if number == self.last_pass:
            self.refuse_second_use()
        self.current.enter(number, examples, self.layer)
        self._begin()
        if self.current.lent == number:
            torch.ops.clars.withdraw(self.number)

    def note(self, squares: Tensor) -> None:
        """Book squared norms of the pass under way."""
        self._begin()
        self.booked.append((squares, self.current.blocks))

    def _begin(self) -> None:
        self.last_pass = self.current.number
        if self.over:
            self.reset()

    def was_cleared(self) -> bool:
        """Tell whether the gradients that what is booked belongs to were cleared behind our back: none is left.

        Where a strategy keeps gradients elsewhere, that would say nothing. One that cuts the parameters (DTensor) may
        keep those of the whole ones until they are averaged.
        """
        if not self.booked and self._leaf.grad is None:
            return False
        present = [(getattr(self._module, name), own) for name, own in self._parameters.items()]
        whole = all(value is own and not hasattr(value, "device_mesh") for value, own in present)
        stay = self.current.gradients_stay and whole
        return stay and all(value.grad is None for value, _ in present)

    def refuse_second_use(self) -> None:
        raise UnsupportedLayerError(
            "is used more than once in one forward pass: each example's contributions must be summed before the norm "
            "is taken, for which there is no rule.",
            self.layer,
        )

    def refuse_second_pass(self) -> None:
        raise UnsupportedLayerError(
            "is reached by a second backward pass through the same forward pass (retain_graph=True). Add the losses up "
            "and call backward once.",
            self.layer,
        )

    def reset(self) -> None:
        """Forget what was measured."""
        self.booked.clear()
        self._leaf.grad = None
        self.over = False

    @property
    def compiled_total(self) -> Tensor | None:
        """The sums [3] that compiled backward passes left."""
        return self._leaf.grad


def sums_of(squares: Tensor, blocks: int) -> Tensor:
    """Return [sum of norms, sum of squared norms, number of examples] along the last dimension of squared norms.

    They are those of one of the batch's blocks. Each block is as likely to be measured, so that its sums times the
    number of blocks are unbiased.
    """
    sums = torch.stack((squares.sqrt(), squares, torch.ones_like(squares)), -1).sum(-2)
    return sums if blocks == 1 else sums * blocks


def totals(accounts: Iterable[Account]) -> dict[str, Tensor]:
    """Return the sums [3] of each account that has any, by layer name; all layers' are formed together.

    Raises:
        UnsupportedLayerError: a layer is used twice in a compiled forward.
    """
    alike: dict[tuple, list[tuple[str, Tensor]]] = {}
    found: dict[str, Tensor] = {}
    for account in accounts:
        if account.compiled_twice:
            account.refuse_second_use()
        if account.compiled_total is not None:
            found[account.layer] = account.compiled_total
        for squares, blocks in account.booked:
            key = (len(squares), blocks, squares.dtype, squares.device)
            alike.setdefault(key, []).append((account.layer, squares))
    for (_, blocks, *_), booked in alike.items():
        rows = sums_of(torch.stack([squares for _, squares in booked]), blocks)
        for (layer, _), row in zip(booked, rows.unbind()):
            found[layer] = found[layer] + row if layer in found else row
    return found


def _new_leaf(like: Tensor) -> Tensor:
    return torch.zeros(3, dtype=wide(like.dtype), device=like.device, requires_grad=True)
