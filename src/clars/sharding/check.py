"""The check, with some of the steps, that every element is held, every gradient measured, and all replicas agree."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, distributed

from clars.errors import UserError
from clars.sharding.layout import Layout

UNMEASURED = (
    "has a gradient but no per-example norms: its parameters were used outside of its module's own forward, as "
    "torch.nn.MultiheadAttention does with out_proj, or a compiled model has recomputed it (activation checkpointing)."
)
TOLERANCE = 1e-3  # of squared norms; replicas whose gradients were averaged have the same to the bit


def verify(
    layout: Layout, expected: Mapping[str, int], reached: Iterable[str], unmeasured: Mapping[str, str]
) -> set[str]:
    """Compare, over all processes, the elements that are held with those that there should be.

    Returns the layers of which a parameter has a gradient and was measured in no process. Costs one all-reduce of three
    8-byte numbers per parameter.

    Args:
        layout: what is believed.
        expected: the number of elements of each parameter.
        reached: the parameters that have a gradient in this process.
        unmeasured: those of which no per-example norms were ever formed in this process, and their layers.

    Raises:
        UserError: elements are missing or held twice, or are not the model's; names parameter and both counts.
    """
    names = list(layout.parameters)
    held = dict.fromkeys(names, 0)
    for shard in layout.shards:
        held[shard.name] += int(layout.found(shard))
    reached = set(reached)
    rows = [[held[name], name in reached, name not in unmeasured] for name in names]
    table = torch.tensor(rows, dtype=torch.long, device=layout.device)
    if layout.world > 1:
        table = layout.sum(table)
    found_unmeasured = set()
    for name, (found, with_gradient, measured) in zip(names, table.tolist()):
        wanted = expected[name] * layout.copies
        if found != wanted:
            raise UserError(
                f"Parameter {name!r} has {expected[name]} elements; {wanted} should be found in the optimizer's "
                f"tensors in {layout.world} processes ({layout.strategy}), and {found} were. The parameters are "
                "sharded in a way that is not understood, or were changed since."
            )
        if with_gradient and not measured:
            found_unmeasured.add(unmeasured[name])
    return found_unmeasured


def require_agreement(layout: Layout, layers: Sequence[str], squares: Tensor) -> None:
    """Refuse replicas whose gradients differ: they were not averaged over the processes that the norms are.

    Costs one all-reduce of two numbers per layer.

    Args:
        layout: of the parameters; where they are cut there is nothing to compare.
        layers: their names.
        squares: [K], the squared norm of each layer's gradient in this process.

    Raises:
        UserError: they differ by more than rounding.
    """
    if layout.sharded or layout.world == 1:
        return
    finite = torch.where(squares.isfinite(), squares, 0.0)
    ends = torch.stack([finite, -finite]).to(layout.device)
    distributed.all_reduce(ends, distributed.ReduceOp.MAX, group=layout.group)
    for layer, most, least in zip(layers, *(ends * ends.new_tensor([[1.0], [-1.0]])).tolist()):
        if most - least > TOLERANCE * most:
            raise UserError(
                f"The gradient of layer {layer!r} has the norm {most**0.5:g} in one of {layout.world} processes and "
                f"{least**0.5:g} in another, so it is not averaged over them as the per-example norms would be. Wrap "
                "the model by DistributedDataParallel over all of these processes, without a hook that leaves averages "
                "out; where it is wrapped for some of them, or trained by each alone, name these: "
                "clars.bind(optimizer, model, group=...)."
            )
