"""Watches a model's forward and replaces each use of a tracked parameter by one that adds up its norms."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clars.errors import UnsupportedLayerError
from clars.native import where
from clars.norms.owners import PLAIN, Labels, Pattern
from clars.norms.rules import CALLS, SEQUENCES
from clars.norms.rules.rule import LayerCall
from clars.norms.watch import bodies, compiling
from clars.norms.watch.accumulator import Accumulator
from clars.norms.watch.contributing import Operand, accumulators_of, parameters_of
from clars.norms.watch.deciding import Deciding, dim_of, is_in_place, name_of
from clars.norms.watch.decisions import Counted, Decision, Way
from clars.norms.watch.expansion import Target, expanded, met
from clars.norms.watch.expressions import Expression, root_of
from clars.norms.watch.inputs import tensors_in
from clars.norms.watch.measured_call import measured
from clars.norms.watch.modules import FunctionCall
from clars.norms.watch.repeated_call import recognisable
from clars.norms.watch.slow_call import slowly
from clars.norms.watch.tensor_functions import (
    ELEMENTWISE,
    EXPANSIONS,
    LOOKS_AT_SECOND,
    STACKS,
    VIEWS,
    is_of_the_tensor_itself,
    keeps_every_element,
)
from clars.norms.watch.tracked_parameter import TrackedParameter
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
        self.expressions: dict[int, Expression] = {}  # which keep their tensors, so that no other takes an id
        self.roots: dict[TrackedParameter, Tensor] = {}
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
        expression = self.expressions.get(id(value))
        if expression is not None and torch.is_grad_enabled() and not expression.tensor.requires_grad:
            return None  # computed where gradients were off
        return expression

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
            return func(*args, **kwargs) if self.operand(first) is None else self._expression(func, args, kwargs)
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
        tensors = list(tensors_of((args, kwargs)))
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
        decisions.forget()
        shapes = " and ".join(str(tuple(value.shape)) for value in others)
        problem = ANOTHER_WAY.format(name=name_of(func), shapes=shapes)
        raise UnsupportedLayerError(dict.fromkeys(layers, problem))

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
            return self._expression(func, args, kwargs)
        if not torch.is_grad_enabled():
            self._pass_over(args, kwargs)
            return func(*args, **kwargs)
        if decision.way is Way.LAYER:
            return self._layer(decision.pattern, func, args, kwargs)
        if decision.way is Way.MEETING:
            return self._meeting(decision, func, args, kwargs)
        return self._slow(decision, func, args, kwargs)

    def _pass_over(self, args, kwargs) -> None:
        """Note uses in what a reentrant checkpoint runs without gradients, and recomputes part by part."""
        operands = [self.operand(value) for value in tensors_of((args, kwargs))]
        for accumulator in accumulators_of(operands):
            accumulator.several = accumulator.several or accumulator in self.passed
            self.passed.add(accumulator)

    def _expression(self, func, args, kwargs):
        """Compute something from parameters alone, and follow what comes out like them."""
        operands = [found for value in tensors_of((args, kwargs)) if (found := self.operand(value)) is not None]
        if is_in_place(func):
            return self._written(func, args, kwargs, operands)
        if is_of_the_tensor_itself(func):
            return func(*args, **kwargs)
        result = func(*self._from_roots(args), **self._from_roots(kwargs))
        (operand,) = operands if len(operands) == 1 else (None,)
        whole = func in VIEWS and keeps_every_element(func, args)
        for tensor in filter(self._is_computed, tensors_of(result)):
            preserving = whole and operand is not None and tensor.numel() == operand.tensor.numel()
            preserving = preserving and (isinstance(operand, TrackedParameter) or operand.preserving)
            before = self._followed(operand) if func in EXPANSIONS and operand is not None else None
            self.expressions[id(tensor)] = Expression(tensor, self._roots(operands), preserving, before)
        return result

    def _written(self, func, args, kwargs, operands: Sequence[Operand]):
        """Write something computed from parameters into a tensor, or change one that is, which is computed then."""
        target = args[0]
        if id(target) in self.parameters:
            return func(*args, **kwargs)
        result = func(*self._from_roots(args), **self._from_roots(kwargs))
        memory = target.untyped_storage().data_ptr()
        changed = [each for each in self.expressions.values() if each.tensor.untyped_storage().data_ptr() == memory]
        roots = self._roots([*operands, *changed])
        for tensor in (target, target._base):
            if tensor is not None and self._is_computed(tensor):
                self.expressions[id(tensor)] = Expression(tensor, roots)
        for each in changed:
            each.roots, each.preserving, each.before = roots, False, None
        return result

    @staticmethod
    def _is_computed(tensor: Tensor) -> bool:
        return tensor.requires_grad or not torch.is_grad_enabled()

    def _roots(self, operands: Sequence[Operand]) -> dict[TrackedParameter, Tensor]:
        return {each: self._root(each) for operand in operands for each in parameters_of(operand)}

    def _from_roots(self, values):
        """Return arguments with what stands for parameters in the places of these."""
        found = (self.parameters.get(id(value)) for value in tensors_of(values))
        return replaced(values, {id(each.tensor): self._root(each) for each in found if each is not None})

    def _root(self, parameter: TrackedParameter) -> Tensor:
        if parameter not in self.roots:
            self.roots[parameter] = root_of(parameter)
        return self.roots[parameter]

    def refuse_returned(self, result) -> None:
        """Refuse what is computed from parameters alone and leaves the forward: it would meet the batch unseen."""
        for tensor in tensors_in((result,)):
            operand = self.operand(tensor) if tensor.requires_grad else None
            if operand is not None:
                self.refused = {each.layer: RETURNED for each in parameters_of(operand)} | self.refused

    def _followed(self, operand: Operand) -> Expression:
        """Return a parameter as what it is computed from itself."""
        if isinstance(operand, Expression):
            return operand
        root = self._root(operand)
        return Expression(root, {operand: root}, preserving=True)

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

    def _meeting(self, decision: Decision, func, args, kwargs):
        """Make a call in which parameters are broadcast over the examples."""
        (pattern,), examples = decision.outputs, self.tracker.examples or _length(args, kwargs)
        dimensions = decision.dimensions
        if func in STACKS:  # what is stacked has a dimension less
            at = dim_of(args, kwargs) % dimensions
            pattern, dimensions = pattern._replace(dim=pattern.dim - (at < pattern.dim)), dimensions - 1
        find, targets = _Find(self, pattern), []
        for value in dict.fromkeys(tensors_of((args, kwargs))):
            operand = find(value)
            if operand is not None:
                before = getattr(operand, "before", None)
                own = before if before is not None and _once(before, dimensions, pattern) else operand
                tensor = own.tensor if isinstance(own, Expression) else value
                targets.append((value, met(tensor, own, dimensions, pattern, examples)))
        wide = expanded([target for _, target in targets])
        places = {id(value): new.expand(_shape(value, target)) for (value, target), new in zip(targets, wide)}
        return func(*replaced(args, places), **replaced(kwargs, places))

    def _slow(self, decision: Decision, func, args, kwargs):
        """Make a call of any function."""
        flat, spec = torch.utils._pytree.tree_flatten((args, kwargs))
        at = [k for k, value in enumerate(flat) if isinstance(value, Tensor)]
        find, result_spec = _Find(self, decision.pattern), []
        operands = [find(flat[k]) for k in at]
        for operand in operands:
            for parameter in parameters_of(operand):
                self.tracker.slowness.add(parameter.layer, name_of(func))

        def call(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            values = list(flat)
            for k, tensor in zip(at, tensors):
                values[k] = tensor
            positional, named = torch.utils._pytree.tree_unflatten(values, spec)
            made, of_result = torch.utils._pytree.tree_flatten(func(*positional, **named))
            result_spec[:] = [of_result]
            return tuple(made)

        made = slowly(call, [flat[k] for k in at], operands, decision.outputs, self.tracker.slowness)
        return torch.utils._pytree.tree_unflatten(made, result_spec[0])


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


def _length(args, kwargs) -> int:
    """Return how many examples a call has, where dimension 0 is the batch and no forward has told their number."""
    return max(tensors_of((args, kwargs)), key=lambda value: value.dim()).shape[0]


def _once(operand: Operand, dimensions: int, pattern: Pattern) -> bool:
    """Tell whether an operand, in a result of so many dimensions, is the same for all examples."""
    dim = pattern.dim - (dimensions - operand.tensor.dim())
    return dim < 0 or operand.tensor.shape[dim] == 1


def _shape(value: Tensor, target: Target) -> torch.Size:
    """Return the shape that stands for a value: its own, but for the dimension that has the examples."""
    if target.pattern is None:
        return value.shape
    aligned = [1] * (len(target.shape) - value.dim()) + list(value.shape)
    aligned[target.pattern.dim] = target.shape[target.pattern.dim]
    return torch.Size(aligned)


def tensors_of(values) -> Iterator[Tensor]:
    """Yield the tensors among a call's arguments or results, those in lists, tuples and mappings included."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_of(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_of(value)


def replaced(values, places: Mapping[int, Tensor]):
    """Return a call's arguments with other tensors in some places, given by the ids of those there."""
    if isinstance(values, Tensor):
        return places.get(id(values), values)
    if isinstance(values, (list, tuple)) and not isinstance(values, torch.Size):
        made = [replaced(value, places) for value in values]
        return type(values)(*made) if hasattr(values, "_fields") else type(values)(made)
    if isinstance(values, Mapping):
        return {key: replaced(value, places) for key, value in values.items()}
    return values
