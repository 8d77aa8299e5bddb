"""What ends a run from outside: another process that died, or that no longer answers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from clars.errors import Fault

# What gloo, NCCL and torch say when a connection to another process breaks or waits for too long.
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "socket closed",
    "timed out",
    "timeout",
    "connection was likely closed",
    "remote process exited",
    "failed to recv",
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the error of a collective operation that lost another process into one that says so."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, Fault) or not _is_lost(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise Fault(
            f"process {distributed.get_rank()} lost another process of this run, which ended or did not answer in "
            f"time ({first}). That process, or the launcher below, tells why. The same command resumes the run."
        ) from None


def _is_lost(error: RuntimeError) -> bool:
    together = distributed.is_initialized() and distributed.get_world_size() > 1
    return together and any(text in str(error).lower() for text in _LOST)
