"""Watches a model's forward and replaces each use of a tracked parameter by one that adds up its norms."""

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.owners import PLAIN, Labels, Pattern
from clars.norms.owners.tensors import tensors_in
from clars.norms.rules import CALLS, SEQUENCES
from clars.norms.rules.rule import LayerCall
from clars.norms.watch import bodies, compiling
from clars.norms.watch.accumulator import Accumulator
from clars.norms.watch.contributing import accumulators_of
from clars.norms.watch.deciding import Deciding, name_of
from clars.norms.watch.decisions import Counted, Decision, Way
from clars.norms.watch.expansion import Target, expanded
from clars.norms.watch.expressions import Expressions, Operand, parameters_of
from clars.norms.watch.measured_call import measured
from clars.norms.watch.meeting import meet
from clars.norms.watch.modules import FunctionCall
from clars.norms.watch.repeated_call import recognisable
from clars.norms.watch.slow_call import slowly
from clars.norms.watch.tensor_functions import (
    ELEMENTWISE,
    LOOKS_AT_SECOND,
)
from clars.norms.watch.watching import Tracker
from clars.sharding.fsdp import is_distributed

DISTRIBUTED = (
    "computes with parameters that are distributed tensors (tensor parallelism), so that a process sees a "
    "part of each example's gradient. Use fully_shard alone."
)
ANOTHER_WAY = (
    "is called in another way, by {name} with inputs of shapes {shapes}, than in the forward in which its examples "
    "were found; the next forward finds them anew. Take this step again."
)
RETURNED = (
    "is returned by the forward, so that what each example contributes to it is decided outside. Let it meet the batch "
    "within the forward."
)
CONTRADICTED = (
    "was not called in the forward in which examples were found, and in one since was taken to have them in dimension "
    "0. They are not there: what the steps since have measured of it is wrong."
)


class Interception(TorchFunctionMode):
    """While it is entered, every use of a tracked parameter has a rule, is harmless, or is refused by name.

    What is refused runs as it is, and is told when the whole forward has been seen.

    Args:
        tracker: whose parameters are looked for.
    """

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker, self.parameters = tracker, tracker.parameters
        self.compiling = where.is_compiling()
        self.compiled = compiling.Compiled(tracker) if self.compiling else None
        self.refused: dict[str, str] = {}
        if self.compiling:
            return
        self.decide: Deciding | None = None  # else calls are made as they were found to be made
        self.expressions = Expressions(self.parameters)
        self.counted = Counted()
        self.passed: set[Accumulator] = set()

    def follow(self, labels: Labels) -> None:
        """Find out how the calls of this forward are made, by the labels of its tensors."""
        self.decide = Deciding(labels, self.tracker.word, self.tracker.slowness is not None)

    def operand(self, value) -> Operand | None:
        """Return which tracked parameter `value` is that requires a gradient now, or how it is computed from some."""
        found = self.parameters.get(id(value))
        if found is not None:
            return found if found.tensor.requires_grad else None
        return self.expressions.of(value)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if where.is_compiling() != self.compiling:
            return func(*args, **kwargs)
        if self.compiling:
            return self.compiled(func, args, kwargs) if torch.is_grad_enabled() else func(*args, **kwargs)
        if not torch.is_grad_enabled() and self.decide is None:
            return func(*args, **kwargs)
        values = (*args, *kwargs.values()) if kwargs else args
        again = self._again(func, values, tuple(kwargs))
        if again is not None:
            return again
        return self._use(func, args, kwargs) if self._is_used(values) else func(*args, **kwargs)

    def again(self, call: FunctionCall) -> Tensor | None:
        """Return the output of a call that is recognised, made without being intercepted; None for others."""
        if not torch.is_grad_enabled():
            return None
        with torch._C.DisableTorchFunction():
            return self._again(*call)

    def _again(self, func, values, keywords) -> Tensor | None:
        """Return the output of a call that is recognised; None for others."""
        if self.decide is not None:
            return None
        parameters = self.parameters
        for value in values[1:]:
            parameter = parameters.get(id(value))
            if parameter is not None and parameter.last_call is not None:
                first = id(values[0])
                if first in parameters or first in self.expressions:
                    return None
                return parameter.last_call.again(func, values, keywords)
        return None

    def _is_used(self, values: Iterable) -> bool:
        """Tell whether a tracked parameter, or what is computed from some, is among `values`, or in lists there."""
        for value in values:
            if isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
                if self._is_used(value):
                    return True
            elif isinstance(value, Tensor) and self.operand(value) is not None:
                return True
        return False

    def _use(self, func, args, kwargs):
        first = args[0] if args else next(iter(kwargs.values()))
        if self.tracker.examples == 0:
            return func(*args, **kwargs)
        if func in LOOKS_AT_SECOND:
            return func(*args, **kwargs) if self.operand(first) is None else self._computed(func, args, kwargs)
        if func not in CALLS and (body := bodies.of(func)) is not None:
            with self:
                return body(*args, **kwargs)
        try:
            return self._made(self._decision(func, args, kwargs), func, args, kwargs)
        except UnsupportedLayerError as error:
            if torch.is_grad_enabled():
                self.refused = error.problems | self.refused  # the first thing that a layer does tells the most
            return func(*args, **kwargs)

    def _decision(self, func, args, kwargs) -> Decision:
        tensors = list(tensors_in((args, kwargs)))
        operands = [found for value in tensors if (found := self.operand(value)) is not None]
        others = [value for value in tensors if self.operand(value) is None]
        if not others:
            return Decision(Way.EXPRESSION)
        if any(map(is_distributed, others)):  # fully_shard has put parts together by now
            apart = [each.layer for each in operands if is_distributed(each.tensor)]
            raise UnsupportedLayerError(dict.fromkeys(apart or [operands[0].layer], DISTRIBUTED))
        parameters = [parameter for operand in operands for parameter in parameters_of(operand)]
        names = tuple(f"{each.layer} {each.name}" for each in parameters)
        layers = tuple(dict.fromkeys(each.layer for each in parameters))
        call = (func, names, tuple(value.dim() for value in others))
        decisions, examples = self.tracker.decisions, self.tracker.examples
        if others[0].numel() == 0 and others[0].shape[0] == examples:  # what is empty can be whose it likes
            return self._assumed(func, others)
        if self.decide is not None:
            decision = self.decide(func, args, kwargs, others, layers, lambda found: _Find(self, found))
            decisions.add(call, self.counted(call) if torch.is_grad_enabled() else None, decision)
            if decisions.contradicts(call, decision):
                raise UnsupportedLayerError(dict.fromkeys(layers, CONTRADICTED))
            return decision
        if examples is None or self.tracker.unfollowed:
            return self._assumed(func, others)
        decision = self._remembered(call, func, others, examples)
        if decision is None:
            decisions.forget()
            shapes = " and ".join(str(tuple(value.shape)) for value in others)
            problem = ANOTHER_WAY.format(name=name_of(func), shapes=shapes)
            raise UnsupportedLayerError(dict.fromkeys(layers, problem))
        return decision

    def _remembered(self, call: Hashable, func, others: Sequence[Tensor], examples: int) -> Decision | None:
        """Return how a call was found to be made, or, if there was none, how it can be made alone; else None."""
        decisions = self.tracker.decisions
        if torch._C._current_graph_task_id() != -1:
            decision = decisions.of_recomputed(call, others, examples)
        else:
            decision = decisions.of(call, self.counted(call), others, examples)
        if decision is not None:
            return decision
        if examples == 1 and func in CALLS and others[0].dim():  # all of it is the one example's
            return Decision(Way.LAYER, pattern=PLAIN._replace(inner=len(others[0])))
        decision = decisions.like(call, others, examples)
        if decision is None and self._is_plain(func, others, examples):
            decision = self._assumed(func, others)
        if decision is not None:
            decisions.assume(call, decision)
        return decision

    @staticmethod
    def _is_plain(func, others: Sequence[Tensor], examples: int) -> bool:
        """Tell whether a call can have the examples in dimension 0 alone, where it was not there to be followed."""
        shape = others[0].shape
        if not shape or shape[0] != examples or not (func in CALLS or func in ELEMENTWISE):
            return False
        among = shape[1:] if func in ELEMENTWISE else shape[1:-1] if func in SEQUENCES else ()
        return not any(size % examples == 0 for size in among)

    def _assumed(self, func, others: Sequence[Tensor]) -> Decision:
        """Return how a call is made where nothing was followed: dimension 0 is the batch."""
        if func in CALLS:
            return Decision(Way.LAYER, rest=tuple(others[0].shape[1:]))
        most = max(value.dim() for value in others)
        return Decision(Way.MEETING, outputs=(PLAIN,), dimensions=most)

    def _made(self, decision: Decision, func, args, kwargs):
        if decision.way is Way.EXPRESSION:
            return self._computed(func, args, kwargs)
        if not torch.is_grad_enabled():
            self._pass_over(args, kwargs)
            return func(*args, **kwargs)
        if decision.way is Way.LAYER:
            return self._layer(decision.pattern, func, args, kwargs)
        if decision.way is Way.MEETING:
            return meet(decision, func, args, kwargs, _Find(self, decision.pattern), self.tracker.examples)
        find = _Find(self, decision.pattern)
        return slowly(func, args, kwargs, find, decision.outputs, self.tracker.slowness)

    def _operands(self, args, kwargs) -> list[Operand]:
        return [found for value in tensors_in((args, kwargs)) if (found := self.operand(value)) is not None]

    def _computed(self, func, args, kwargs):
        return self.expressions.compute(func, args, kwargs, self._operands(args, kwargs))

    def _pass_over(self, args, kwargs) -> None:
        """Note uses in what a reentrant checkpoint runs without gradients, and recomputes part by part."""
        for accumulator in accumulators_of(self._operands(args, kwargs)):
            accumulator.several = accumulator.several or accumulator in self.passed
            self.passed.add(accumulator)

    def refuse_returned(self, result) -> None:
        """Refuse what is computed from parameters alone and leaves the forward: it would meet the batch unseen."""
        for tensor in tensors_in((result,)):
            operand = self.operand(tensor) if tensor.requires_grad else None
            if operand is not None:
                self.refused = {each.layer: RETURNED for each in parameters_of(operand)} | self.refused

    def _layer(self, pattern: Pattern, func, args, kwargs):
        call = CALLS[func](_Find(self, pattern), *args, **kwargs)
        if not isinstance(call, LayerCall):
            return call
        if call.x.dim() and call.x.shape[pattern.dim] == 0:  # a batch without an example
            return func(*args, **kwargs)
        y, native_call = measured(call, pattern)
        if native_call is not None:
            owner = next(each for each in call.parameters if each is not None)
            values = (*args, *kwargs.values())
            owner.last_call = recognisable(func, values, tuple(kwargs), call, native_call)
        return y


class _Find:
    """Tells rules which of a call's tensors are about to be measured.

    Made for a call, not kept: a cycle would keep copies of weights until Python looks for garbage.
    """

    def __init__(self, interception: Interception, pattern: Pattern) -> None:
        self.interception, self.pattern = interception, pattern

    def __call__(self, tensor: Tensor | None) -> Operand | None:
        operand = self.interception.operand(tensor)
        for parameter in parameters_of(operand):
            parameter.accumulator.measured.add(parameter.name)
        return operand

    def expand(self, shape: torch.Size, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        operands = [self(tensor) for tensor in tensors]
        return expanded([Target(each, operand, shape, self.pattern) for each, operand in zip(tensors, operands)])
