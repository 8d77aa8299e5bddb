"""What ends a run from outside: another process that died, or that no longer answers."""

import re
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

# What torch says of a process that loads images: that it is gone, or that there is no room for what it hands over.
_WORKER = re.compile(
    r"DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)|unable to \w+ shared memory", re.DOTALL
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error that tells of a lost process into one that says so: of another of the run, or of a worker's.

    A worker's death is told by a signal, so its error may come out of any line of the training process.

    Raises:
        Fault: the run can be resumed.
    """
    try:
        yield
    except RuntimeError as error:
        first = next(iter(str(error).strip().splitlines()), "")
        if _WORKER.search(str(error)):
            raise Fault(
                f"a process that loads images was lost ({first}). It may have found no memory left, or no room in "
                "/dev/shm, where batches are handed over. Give it more (docker: --shm-size=8g, or --ipc=host), and the "
                "same command resumes the run; or begin anew with fewer data.workers."
            ) from None
        if not _is_lost(error):
            raise
        raise Fault(
            f"process {distributed.get_rank()} lost another process of this run, which ended or did not answer in "
            f"time ({first}). That process, or the launcher below, tells why. The same command resumes the run."
        ) from None


def _is_lost(error: RuntimeError) -> bool:
    together = distributed.is_initialized() and distributed.get_world_size() > 1
    return together and any(text in str(error).lower() for text in _LOST)
