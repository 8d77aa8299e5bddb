"""How a global batch is cut: over processes, and into the micro-batches that a machine can hold."""

from dataclasses import dataclass

from clars.errors import UserError
from clars.lab.terminal import plural


@dataclass(frozen=True)
class Division:
    """A global batch as `accumulation` micro-batches on each of `world_size` processes."""

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int


def divide(global_batch: int, world_size: int, limit: int | None, group: int = 1) -> Division:
    """Cut the recipe's global batch for this machine.

    Args:
        global_batch: examples per optimizer step, over all processes.
        world_size: number of processes.
        limit: most examples that one process handles at once; None for no limit.
        group: examples that are measured together: the same ones on every machine, so no micro-batch cuts a group.

    Raises:
        UserError: the processes cannot have equal shares, or none of whole groups.
    """
    share, rest = divmod(global_batch, world_size)
    if rest:
        raise UserError(
            f"batch_size={global_batch} cannot be shared by {world_size} processes equally. "
            "Launch a number of processes that divides it."
        )
    if limit is not None and limit < 1:
        raise UserError(f"--micro-batch {limit}: at least 1 example must fit.")
    sizes = [size for size in range(1, min(share, limit or share) + 1) if share % size == 0]
    whole = [size for size in sizes if size % group == 0 or size == global_batch]
    if not whole:
        raise UserError(
            f"optimizer.group={group}: batch_size={global_batch} cannot be cut into micro-batches of whole groups for "
            f"{plural(world_size, 'process', 'processes')} of at most {min(share, limit or share)} "
            f"examples each. Choose a batch_size that is a multiple of {world_size * group}, and a --micro-batch that "
            f"is one of {group}."
        )
    micro = max(whole)
    return Division(global_batch, micro, share // micro, world_size)
