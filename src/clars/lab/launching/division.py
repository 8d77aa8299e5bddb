"""How a global batch is cut: over processes, and into the micro-batches that a machine can hold."""

from dataclasses import dataclass

from clars.errors import UserError


@dataclass(frozen=True)
class Division:
    """A global batch as `accumulation` micro-batches on each of `world_size` processes."""

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int


def divide(global_batch: int, world_size: int, limit: int | None) -> Division:
    """Cut the recipe's global batch for this machine.

    Args:
        global_batch: examples per optimizer step, over all processes.
        world_size: number of processes.
        limit: most examples that one process handles at once; None for no limit.

    Raises:
        UserError: the processes cannot have equal shares.
    """
    share, rest = divmod(global_batch, world_size)
    if rest:
        raise UserError(
            f"batch_size={global_batch} cannot be shared by {world_size} processes equally. "
            "Launch a number of processes that divides it."
        )
    if limit is not None and limit < 1:
        raise UserError(f"--micro-batch {limit}: at least 1 example must fit.")
    micro = max(size for size in range(1, min(share, limit or share) + 1) if share % size == 0)
    return Division(global_batch, micro, share // micro, world_size)
