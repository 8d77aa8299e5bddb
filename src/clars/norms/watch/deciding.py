"""Finds out, in a forward that is followed, how a call with parameters is made and where its examples are."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.errors import UnsupportedLayerError
from clars.norms.owners import Labels, Pattern, Unknown, read
from clars.norms.owners.tensors import tensors_in
from clars.norms.rules import CALLS, input_of
from clars.norms.rules.rule import LayerCall, NoBatchError
from clars.norms.rules.synchronised import scale_and_shift
from clars.norms.watch.decisions import Decision, Way, without
from clars.norms.watch.tensor_functions import (
    ELEMENTWISE,
    JOINS,
    MEETINGS,
    PRODUCTS,
    dim_of,
    is_in_place,
    name_of,
)

MIXED = (
    "sees rows of which it cannot be told which example each belongs to: they depend on several, or lie in no pattern. "
    "If an example's rows do lie in one, say so: ExampleNorms(model, rows={pattern of the layer's name: '(b n)'}) for "
    "consecutive rows, '(n b)' where the examples take turns, 'n b' for dimension 1."
)
STRAY = (
    "sees an input of the model whose first dimension is not the batch's {examples}. Give all of the batch the same "
    "number of rows, or call the model once for each."
)
CHANGED = "changes its input in place by {name}, for which no exact per-example norm is known."


class Deciding:
    """Decides by the labels of a followed forward.

    Args:
        labels: of its tensors.
        words: what the user says of the rows of a layer's input, by its name; None of most.
        slow: tells whether functions without a rule may be measured slowly.
    """

    def __init__(self, labels: Labels, words: Callable[[str], str | None], slow: bool) -> None:
        self.labels, self.words, self.slow = labels, words, slow

    def __call__(
        self, func: Callable, args: tuple, kwargs: dict, others: Sequence[Tensor], layers: Sequence[str], find: Callable
    ) -> Decision:
        """Return how a call is made.

        Args:
            func, args, kwargs: the call.
            others: the tensors among its arguments that are not computed from parameters alone.
            layers: the names of the layers whose parameters are in it.
            find: makes from a pattern what rules ask for parameters (see `Find`).

        Raises:
            UnsupportedLayerError: it cannot be told where the examples are, or there is no rule, and no slow one.
        """
        found = [(at, label) for at, x in enumerate(others) if (label := self.labels.of(x)) is not None]
        patterns = [(at, label) for at, label in found if isinstance(label, Pattern)]
        word = self.words(layers[0])
        if word is not None and func in CALLS and found:
            at = found[0][0]
            patterns = [(at, read(word, others[at].shape, self.labels.examples))]
        elif any(label is Unknown.MIXED for _, label in found) and (not patterns or func in CALLS):
            raise UnsupportedLayerError(dict.fromkeys(layers, MIXED))
        if not patterns:
            if found and func is F.embedding_bag:  # with offsets, of bags that need not be as many
                return Decision(Way.LAYER, -1)
            if found:
                raise UnsupportedLayerError(dict.fromkeys(layers, STRAY.format(examples=self.labels.examples)))
            return Decision(Way.EXPRESSION)
        at, pattern = patterns[0]
        rest = without(others[at].shape, pattern.dim)
        if func in CALLS and self._has_rule(func, args, kwargs, pattern, find):
            return Decision(Way.LAYER, at, pattern, rest)
        outputs, dimensions = self._outputs(func, args, kwargs, layers)
        if not any(outputs):
            return Decision(Way.EXPRESSION)
        if _can_meet(func, args, kwargs, outputs, dimensions):
            return Decision(Way.MEETING, at, pattern, rest, outputs[:1], dimensions)
        if not self.slow:
            problem = f"uses its parameters in {name_of(func)}, for which there is no fast rule."
            raise UnsupportedLayerError(dict.fromkeys(layers, problem))
        return Decision(Way.SLOW, at, pattern, rest, outputs, dimensions)

    def _has_rule(self, func, args, kwargs, pattern: Pattern, find: Callable) -> bool:
        """Tell whether the rule of a function takes such a call."""
        if find(pattern)(input_of(func, args, kwargs)) is not None:
            return False
        if func in (F.instance_norm, scale_and_shift):  # made of others, and it may change buffers
            return pattern.dim == 0
        try:
            with torch.no_grad():
                call = CALLS[func](find(pattern), *args, **kwargs)
        except NoBatchError:
            raise
        except UnsupportedLayerError:
            if not self.slow and func not in MEETINGS:
                raise
            return False
        return pattern.dim < (call.rule.leading(call.x) if isinstance(call, LayerCall) else 1)

    def _outputs(self, func, args, kwargs, layers: Sequence[str]) -> tuple[tuple[Pattern | None, ...], int]:
        """Return where each output of a call has its examples, and the dimensions of the first."""
        if func is Tensor.__setitem__:
            made = [args[0][args[1]]]
        elif is_in_place(func):
            if func not in ELEMENTWISE and func not in MEETINGS:
                raise UnsupportedLayerError(dict.fromkeys(layers, CHANGED.format(name=name_of(func))))
            made = [args[0]]
        else:
            made = list(tensors_in((_tried(func, args, kwargs),)))
        labels = [self.labels.of(x) for x in made]
        for label, x in zip(labels, made):
            if isinstance(label, Unknown) and x.dtype.is_floating_point:
                raise UnsupportedLayerError(dict.fromkeys(layers, MIXED))
        nobodys = [x for label, x in zip(labels, made) if label is None and x.dtype.is_floating_point]
        if nobodys and len(nobodys) < len(made):
            problem = f"uses its parameters in {name_of(func)}, of whose results only some are of examples."
            raise UnsupportedLayerError(dict.fromkeys(layers, problem))
        return tuple(label if isinstance(label, Pattern) else None for label in labels), made[0].dim()


def _can_meet(func, args, kwargs, outputs: Sequence[Pattern | None], dimensions: int) -> bool:
    """Tell whether what the examples have in common can be expanded along a dimension of the result."""
    if func not in MEETINGS and func not in ELEMENTWISE:
        return False
    if func in PRODUCTS:
        if any(value.dim() < 2 for value in tensors_in((args, kwargs))):
            return False
        return outputs[0].dim < dimensions - 2
    return func not in JOINS or dim_of(args, kwargs) % dimensions != outputs[0].dim


def _tried(func, args, kwargs):
    """Make a call for its labels alone."""
    devices = {x.device for x in tensors_in((args, kwargs)) if x.device.type not in ("cpu", "meta")}
    with torch.no_grad(), torch.random.fork_rng(devices=[device.index for device in devices]):
        return func(*args, **kwargs)
