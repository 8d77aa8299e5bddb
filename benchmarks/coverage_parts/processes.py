"""A process for each network, some at a time, each with a limit."""

import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import torch

FORK = get_context("fork")  # what the parent has imported is there at once


def each_by_itself(
    work: Callable[[str], dict], names: Iterable[str], workers: int, seconds: int
) -> Iterator[tuple[str, dict]]:
    """Yield each name with what `work` returns for it in a process of its own, as they end.

    A process ends after `seconds` of processor time, or four times as many of the clock: {"status": "time"}. One that
    dies otherwise: {"status": "fails"}. All that run are ended with the generator.
    """
    left, running = list(names), {}
    try:
        while left or running:
            while left and len(running) < workers:
                name = left.pop(0)
                mine, its = FORK.Pipe(duplex=False)
                process = FORK.Process(target=_run, args=(work, name, its, seconds), daemon=True)
                process.start()
                its.close()
                running[mine] = (name, process, time.monotonic() + 4 * seconds)
            ready = wait(list(running), timeout=1)
            for connection, (name, process, until) in list(running.items()):
                if connection not in ready and time.monotonic() < until:
                    continue
                found = _received(connection) if connection in ready else None
                if found is None and connection not in ready:
                    process.kill()
                process.join()
                late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
                del running[connection]
                yield name, found or ({"status": "time"} if late else _died(process.exitcode))
    finally:
        for _, process, _ in running.values():
            process.kill()


def _died(code: int | None) -> dict:
    return {"status": "fails", "message": f"the process ended with exit code {code}"}


def _received(connection: Connection) -> dict | None:
    try:
        return connection.recv()
    except EOFError:
        return None
    finally:
        connection.close()


def _run(work: Callable[[str], dict], name: str, connection: Connection, seconds: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    connection.send(work(name))
    connection.close()
