"""Starting `recipes/train.py` as `accelerate launch` does."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

from clars.errors import UserError, nearest
from clars.lab.launching import devices, exits, single_process
from clars.lab.recipes import registry
from clars.lab.recipes.reading import read_file

AUTO = "auto"


def automatic(batches: Iterable[int] = (), groups: Iterable[int] = ()) -> tuple[str, str]:
    """Return the name of the configuration that AUTO takes on this machine, and why.

    Args:
        batches: the global batches to be trained with, which all GPUs must be able to share for all to be taken.
        groups: of each batch, how many of its examples are measured together, on one GPU; 1 where it is not given.
    """
    found = devices.gpus()
    if found < 2:
        return ("gpu", "there is one GPU") if found else ("cpu", "torch finds no GPU here")
    for batch, group in zip_longest(batches, groups, fillvalue=1):
        if batch % (found * group):
            whole = f" in groups of {group}" if group > 1 else ""
            return "gpu", f"one of {found} GPUs, as they cannot share batch_size={batch} equally{whole}"
    return "ddp", f"there are {found} GPUs"


def find_config(name: str, batches: Iterable[int] = (), groups: Iterable[int] = ()) -> Path:
    """Return the accelerate configuration `configs/accelerate/<name>.yaml`, or the file `name` itself.

    For AUTO it is that of `automatic`, which is told by a line; batches and groups are for it.

    Raises:
        UserError: there is none; the message lists those that are.
    """
    if name == AUTO:
        name, reason = automatic(batches, groups)
        print(f"--launch {AUTO} takes {name}: {reason}", flush=True)
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"--launch {name}: there is no such file.")
        return Path(name)
    folder = registry.launch_configs()
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        near = nearest(name, [*known, AUTO])
        raise UserError(f"--launch {name}: not in {folder}, which has: {', '.join(known) or 'none'}.{near}")
    return known[name]


def processes(config: Path) -> int | str:
    """Return how many processes a configuration launches, or "gpu": as many as there are GPUs."""
    return _settings(config).get("num_processes", 1)


def command(arguments: Sequence[str], config: Path) -> list[str]:
    """Return the `accelerate launch` command that runs recipes/train.py with `arguments`.

    Each process has one thread, unless OMP_NUM_THREADS says otherwise: accelerate's own choice, all cores for a
    process on the CPU, makes small networks many times slower where the cores are shared.
    """
    script = registry.script()
    threads = [] if "OMP_NUM_THREADS" in os.environ else ["--num_cpu_threads_per_process=1"]
    line = ["accelerate", "launch", "--quiet", *threads, "--config_file", _short(config)]
    return [*line, _short(script), *arguments]


def launch(arguments: Sequence[str], config: Path) -> int:
    """Print the command and do what it does; return the exit code of recipes/train.py.

    Ctrl-C, SIGTERM and a closed terminal are handed on to the training processes, which stop in their own way and are
    waited for, whether the signal was sent to this process alone or to all; a second one kills them.

    Raises:
        UserError: the configuration wants GPUs or DeepSpeed and there are none.
    """
    return launch_together([arguments], config)


def launch_together(lists: Sequence[Sequence[str]], config: Path, tell: Callable[[str], None] | None = None) -> int:
    """Run the command with each list of arguments at once, and wait for all; return the gravest exit code.

    Args:
        lists: the arguments of recipes/train.py, a list for each launch.
        config: the accelerate configuration of each.
        tell: is called with each line that the launches print, from several threads; None leaves them the terminal.
    """
    _require_machine(config)
    for arguments in lists:
        print(f"$ {shlex.join(command(arguments, config))}", flush=True)
    own = single_process.environment(_settings(config))
    # Of accelerate's command line, only what launches: another of its commands imports timm.
    start, words = ("-m", "accelerate.commands.launch"), [command(arguments, config)[2:] for arguments in lists]
    if own is not None:
        start, words = (str(registry.script()),), lists
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(lists))]
        environments = [os.environ | (own or {}) | {exits.FILE: str(file)} for file in files]
        returned, stopped = _run([[sys.executable, *start, *line] for line in words], environments, tell)
        ends = [exits.FAULT if code else exits.FINISHED for code in returned]  # of those that died without a report
        codes = [exits.reported(file, otherwise=end) for file, end in zip(files, ends)]
    # A launcher that has lost one process interrupts the others: that is no end that anyone asked for.
    return exits.gravest(exits.FAULT if code == exits.INTERRUPTED and not stopped else code for code in codes)


def at_once(config: Path, jobs: int, wanted: int | None, cores: int | None = None) -> int:
    """Return how many launches of a configuration run side by side: `wanted`, or as many as there are cores for.

    By default there are at most 8, and one where a launch has several processes or a GPU of its own. `cores` are those
    that this process may use, counted where it is None.

    Raises:
        UserError: several are wanted of such a configuration.
    """
    settings = _settings(config)
    takes_all = settings.get("num_processes") != 1 or not settings.get("use_cpu")
    if takes_all and wanted not in (None, 1):
        raise UserError(f"--parallel {wanted}: {config.stem} takes the machine for one launch. Choose --launch cpu.")
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    return min(jobs, wanted or (1 if takes_all else max(1, min(8, (cores or devices.cores()) // threads))))


def _run(
    lines: Sequence[Sequence[str]], environments: Sequence[dict[str, str]], tell: Callable[[str], None] | None
) -> tuple[list[int], bool]:
    """Run commands in process groups of their own; return their exit codes, and whether they were told to stop."""
    signals = (*exits.STOP, signal.SIGHUP)
    # The launchers must not die of a signal that their training processes take to save their state. They inherit that
    # it is ignored; the training processes undo it by `exits.guard`.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    told: list[int] = []
    running: list[subprocess.Popen] = []
    output = {} if tell is None else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}

    def stop(number: int, frame: object) -> None:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL if told else number if number in exits.STOP else signal.SIGTERM)
        told.append(number)

    try:
        for line, environment in zip(lines, environments):
            running.append(subprocess.Popen(line, env=environment, process_group=0, **output))
        for number in signals:
            signal.signal(number, stop)
        readers = [threading.Thread(target=_read, args=(process, tell)) for process in running if tell]
        for reader in readers:
            reader.start()
        codes = [process.wait() for process in running]
        for reader in readers:
            reader.join()
        return codes, bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _read(process: subprocess.Popen, tell: Callable[[str], None]) -> None:
    for line in process.stdout:
        tell(line.rstrip("\n"))


def _require_machine(config: Path) -> None:
    # The launchers would say so too, at the end of a long traceback.
    settings = _settings(config)
    lacking = [name for name in ("deepspeed", "transformers") if not find_spec(name)]
    if settings.get("distributed_type") == "DEEPSPEED" and lacking:
        raise UserError(f"--launch {config.stem}: needs {lacking[0]}. Install it: pip install 'clars[deepspeed]'.")
    # Where a single process is asked for on a GPU, accelerate would take the processor without a word.
    alone_on_gpu = settings.get("distributed_type") in ("NO", False) and settings.get("use_cpu") is False
    if (alone_on_gpu or settings.get("num_processes") == "gpu") and not devices.gpus():
        raise UserError(f"--launch {config.stem}: needs a GPU, and torch finds none here. Choose --launch cpu.")


def _settings(config: Path) -> dict:
    return read_file(config)[0]


def _short(path: Path) -> str:
    """Return `path` relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
