"""The check, once, that every element of every layer is held, and that every gradient was measured."""

from collections.abc import Iterable, Mapping

import torch

from clars.errors import UnsupportedLayerError, UserError
from clars.sharding.layout import Layout


def verify(
    layout: Layout, expected: Mapping[str, int], reached: Iterable[str], unmeasured: Mapping[str, str]
) -> set[str]:
    """Compare, over all processes, the elements that are held with those that there should be.

    Returns the layers of which a parameter was measured in no process so far, as none has a gradient for it.

    Costs one all-reduce of three 8-byte numbers per parameter.

    Args:
        layout: what is believed.
        expected: the number of elements of each parameter.
        reached: the parameters that have a gradient in this process.
        unmeasured: those of which no per-example norms were formed in this process, and their layers.

    Raises:
        UserError: elements are missing or held twice, or are not the model's; names parameter and both counts.
        UnsupportedLayerError: a parameter has a gradient and was measured in no process.
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
    awaited = set()
    for name, (found, with_gradient, measured) in zip(names, table.tolist()):
        wanted = expected[name] * layout.copies
        if found != wanted:
            raise UserError(
                f"Parameter {name!r} has {expected[name]} elements; {wanted} should be found in the optimizer's "
                f"tensors in {layout.world} processes ({layout.strategy}), and {found} were. The parameters are "
                "sharded in a way that is not understood, or were changed since."
            )
        if with_gradient and not measured:
            refuse_unmeasured([name], unmeasured)
        if not measured:
            awaited.add(unmeasured[name])
    return awaited


def refuse_unmeasured(reached: Iterable[str], unmeasured: Mapping[str, str]) -> None:
    """Refuse a parameter that has a gradient but was never measured: it came there by another way."""
    for name in reached:
        if name in unmeasured:
            raise UnsupportedLayerError(
                f"has a gradient for {name!r} but no per-example norms: the parameter was used outside of its module's "
                "own forward, as torch.nn.MultiheadAttention does with out_proj.",
                unmeasured[name],
            )
