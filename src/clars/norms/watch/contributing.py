"""What the backward pass of a call does for the norms, whatever the call: who is asked, and what is booked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from clars.errors import UnsupportedLayerError
from clars.norms.methods.measure import Measure
from clars.norms.methods.products import squared_norms
from clars.norms.rules.rule import Rule
from clars.norms.watch.accumulator import Accumulator
from clars.norms.watch.expressions import Expression, Operand, parameters_of
from clars.norms.watch.parts import Part, kept, pieces, shape_of
from clars.norms.watch.sums import sums_of
from clars.norms.watch.tracked_parameter import TrackedParameter, arrives
from clars.precision import wide

# From a slice of the examples, and the number of an operand, to the contributions [groups, *shape] to its gradient.
Shares = Callable[[slice, int], Tensor]


def accumulators_of(operands: Sequence[Operand | None]) -> list[Accumulator]:
    """Return the accumulators of all operands, each once."""
    return list(dict.fromkeys(parameter.accumulator for each in operands for parameter in parameters_of(each)))


def require_batch(operands: Sequence[Operand | None], examples: int) -> None:
    """Check that a call of so many examples can be one of the batch.

    A compiled call was checked before: while it is traced, the batch known here is still that of the call before it.

    Raises:
        UnsupportedLayerError: the model's input has another number of examples.
    """
    for operand in operands:
        if getattr(operand, "leaf", None) is not None:
            continue
        for parameter in parameters_of(operand):
            if problem := parameter.accumulator.current.problem_of(examples):
                raise UnsupportedLayerError({parameter.layer: problem})


def leaves_of(operands: Sequence[Operand | None]) -> list[Tensor]:
    """Return the tensors by whose gradients the sums of a compiled backward pass leave it; otherwise none."""
    leaves = {each.accumulator: each.leaf for each in operands if getattr(each, "leaf", None) is not None}
    for accumulator in leaves:
        accumulator.current.estimator.without_draw()
    return list(leaves.values())


def start(ctx, operands: Sequence[Operand | None], leaves: Sequence[Tensor]) -> None:
    """Prepare an autograd function, in its forward, for what its backward pass will be asked."""
    ctx.operands = operands
    ctx.spent = False
    ctx.compiled = len(leaves) > 0
    if not ctx.compiled:
        ctx.outer_pass = torch._C._current_graph_task_id()  # not -1: recomputed inside a backward pass
        recomputed = ctx.outer_pass != -1
        ctx.uses = [(each, each.begin_use(recomputed)) for each in accumulators_of(operands)]


@dataclass
class Asked:
    """What a backward pass asks of a call.

    Attributes:
        measure: which of its examples are measured, and how.
        parameters: whose gradients arrive, and are to be booked.
        accumulators: theirs, each once.
    """

    measure: Measure
    parameters: set[TrackedParameter]
    accumulators: list[Accumulator]


def enter(ctx, examples: int, nodes: Sequence[Node | None]) -> Asked:
    """Return what to measure in this backward pass.

    A compiled one is traced once, so it can check nothing.

    Args:
        ctx: of the autograd function.
        examples: how many it saw.
        nodes: where the gradients of the operands go, in their order.
    """
    every = accumulators_of(ctx.operands)
    everyone = {parameter for operand in ctx.operands for parameter in parameters_of(operand)}
    if ctx.compiled:
        return Asked(every[0].current.estimator.without_draw(), everyone, every)
    # autograd's number of the pass under way, or of the one that recomputed the forward
    running = ctx.outer_pass if ctx.outer_pass != -1 else torch._C._current_graph_task_id()
    arriving = set(_arriving(ctx.operands, nodes))
    asked = [each for each in every if any(parameter.accumulator is each for parameter in arriving)]
    allowed = [each for each in asked if each.enter(running, examples, ctx.spent)]
    for accumulator, use in ctx.uses:
        accumulator.uses.discard(use)
    ctx.spent = ctx.spent or bool(asked)
    if not allowed:
        return Asked(every[0].current.estimator.everything, set(), [])
    arriving = {parameter for parameter in arriving if parameter.accumulator in allowed}
    return Asked(allowed[0].current.measure._replace(layer=allowed[0].layer), arriving, allowed)


def _arriving(operands: Sequence[Operand | None], nodes: Sequence[Node | None]) -> Iterator[TrackedParameter]:
    for operand, node in zip(operands, nodes):
        if isinstance(operand, Expression) and not operand.preserving:
            yield from (parameter for parameter, root in operand.roots.items() if arrives(root.grad_fn))
        elif operand is not None and arrives(node):
            yield from parameters_of(operand)


def is_simple(operand: Operand | None) -> bool:
    """Tell whether the norm of an operand's gradient is that of its parameter's, which nothing else contributes to."""
    if operand is None:
        return True
    preserving = not isinstance(operand, Expression) or operand.preserving
    return preserving and not any(parameter.accumulator.several for parameter in parameters_of(operand))


def are_simple(operands: Sequence[Operand | None]) -> bool:
    """Tell whether all operands of a call are simple, and no parameter is in two of them."""
    every = [parameter for operand in operands for parameter in parameters_of(operand)]
    return len(set(every)) == len(every) and all(map(is_simple, operands))


def add_squares(ctx, squares: Sequence[Tensor | None], asked: Asked, examples: int) -> list[Tensor | None]:
    """Add to each accumulator the joint squares of its simple operands; return the gradients of the leaves, if any."""
    gradients = []
    for accumulator in asked.accumulators:
        joint = None
        for square, operand in zip(squares, ctx.operands):
            own = any(each in asked.parameters and each.accumulator is accumulator for each in parameters_of(operand))
            if own and square is not None:
                joint = square if joint is None else joint + square
        if ctx.compiled:
            gradients.append(None if joint is None else sums_of(joint, examples, asked.measure.group))
        elif joint is not None:
            accumulator.add(joint)
    return gradients


def add_shares(
    operands: Sequence[Operand | None], shares: Shares, asked: Asked, examples: int, at_once: bool = False
) -> None:
    """Add to each accumulator what a call's operands, of any kind, contribute.

    A parameter that has several uses is deferred as it is, unless `at_once`; everything else is pulled back now, while
    its graph is there, in pieces of the batch.
    """
    now: list[int] = []
    for k, operand in enumerate(operands):
        mine = [parameter for parameter in parameters_of(operand) if parameter in asked.parameters]
        if mine and not at_once and isinstance(operand, TrackedParameter) and operand.accumulator.several:
            operand.accumulator.defer(operand.name, Part(lambda rows, k=k: shares(rows, k), shape_of(operand.tensor)))
        elif mine:
            now.append(k)
    if now:
        _add_now([(k, operands[k]) for k in now], shares, asked, examples)


def _add_now(operands: Sequence[tuple[int, Operand]], shares: Shares, asked: Asked, examples: int) -> None:
    deferred: dict[TrackedParameter, list[Tensor]] = {}
    squares: dict[Accumulator, list[Tensor]] = {}
    for piece in pieces(asked.measure, examples, _bytes(operands), operands[0][1].tensor.device):
        joint: dict[Accumulator, Tensor] = {}
        for parameter, contribution in _contributions(operands, shares, piece, asked).items():
            if parameter.accumulator.several:
                deferred.setdefault(parameter, []).append(contribution)
            else:
                square = squared_norms(contribution)
                joint[parameter.accumulator] = joint.get(parameter.accumulator, 0) + square
        for accumulator, square in joint.items():
            squares.setdefault(accumulator, []).append(square)
    for accumulator, found in squares.items():
        accumulator.add(torch.cat(found))
    for parameter, found in deferred.items():
        parameter.accumulator.defer(parameter.name, kept(found, asked.measure, parameter.tensor))


def _contributions(
    operands: Sequence[tuple[int, Operand]], shares: Shares, piece: slice, asked: Asked
) -> dict[TrackedParameter, Tensor]:
    """Return what a piece's groups contribute to each parameter, through all operands together."""
    found: dict[TrackedParameter, Tensor] = {}
    for k, operand in operands:
        share = shares(piece, k)
        if is_simple(operand) or not isinstance(operand, Expression):
            each = [(parameters_of(operand)[0], share)]
        else:
            each = operand.pulled_back(share)
        for parameter, contribution in each:
            if parameter in asked.parameters:
                found[parameter] = found[parameter] + contribution if parameter in found else contribution
    return found


def _bytes(operands: Sequence[tuple[int, Operand]]) -> int:
    """Return the bytes that the contributions of a group take, and what they are pulled back from."""
    tensors = [operand.tensor for _, operand in operands]
    tensors += [root for _, operand in operands if isinstance(operand, Expression) for root in operand.roots.values()]
    return sum(2 * tensor.numel() * wide(tensor.dtype).itemsize for tensor in tensors)


def shares_of(rule: Rule, gy: Tensor, x: Tensor, weight: Tensor, saved: tuple, group: int, rows: int) -> Shares:
    """Return what tells the contributions to a layer's weight and bias, perhaps when the weight is gone.

    Args:
        rule, gy, x, weight, saved: of the call, as for `Rule.backward`.
        group: so many consecutive rows are summed.
        rows: so many an example has.
    """
    weight = shape_of(weight)

    def shares(piece: slice, which: int) -> Tensor:
        some = slice(piece.start * rows, piece.stop * rows)
        return rule.contributions(gy, x, weight, saved, some, min(group, some.stop - some.start), which)

    return shares
