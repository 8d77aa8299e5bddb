"""Starting `recipes/train.py` through `accelerate launch`."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from clars import exits
from clars.errors import UserError, nearest
from clars.recipes import registry
from clars.recipes.load import read_file


def find_config(name: str) -> Path:
    """Return the accelerate configuration `configs/accelerate/<name>.yaml`, or the file `name` itself.

    Raises:
        UserError: there is none; the message lists those that are.
    """
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"--launch {name}: there is no such file.")
        return Path(name)
    folder = registry.root().parent / "configs" / "accelerate"
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        listed = ", ".join(known) or "none"
        raise UserError(f"--launch {name}: not in {folder}, which has: {listed}.{nearest(name, known)}")
    return known[name]


def command(arguments: Sequence[str], config: Path) -> list[str]:
    """Return the `accelerate launch` command that runs recipes/train.py with `arguments`.

    Each process has one thread, unless OMP_NUM_THREADS says otherwise: accelerate's own choice, all cores for a
    process on the CPU, makes small networks many times slower where the cores are shared.
    """
    script = registry.root() / "train.py"
    threads = [] if "OMP_NUM_THREADS" in os.environ else ["--num_cpu_threads_per_process=1"]
    line = ["accelerate", "launch", "--quiet", *threads, "--config_file", _short(config)]
    return [*line, _short(script), *arguments]


def launch(arguments: Sequence[str], config: Path) -> int:
    """Print and run the command; return the exit code of recipes/train.py.

    Ctrl-C, SIGTERM and a closed terminal are handed on to the training processes, which stop in their own way and are
    waited for, whether the signal was sent to this process alone or to all; a second one kills them.

    Raises:
        UserError: the configuration wants GPUs or DeepSpeed and there are none.
    """
    _require_machine(config)
    line = command(arguments, config)
    print(f"$ {shlex.join(line)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        module = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
        returned, stopped = _run([*module, *line[1:]], {**os.environ, exits.FILE: str(code)})
        found = exits.reported(code, otherwise=returned)
    # A launcher that has lost one process interrupts the others: that is no end that anyone asked for.
    return exits.FAULT if found == exits.INTERRUPTED and not stopped else found


def _run(line: Sequence[str], environment: dict[str, str]) -> tuple[int, bool]:
    """Run a command in a process group of its own; return its exit code, and whether it was told to stop."""
    signals = (*exits.STOP, signal.SIGHUP)
    # The launcher must not die of a signal that its training processes take to save their state. It inherits that
    # they are ignored; the training processes undo it by `exits.guard`.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in signals}
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        os.killpg(process.pid, signal.SIGKILL if told else number if number in exits.STOP else signal.SIGTERM)
        told.append(number)

    try:
        process = subprocess.Popen(line, env=environment, process_group=0)
        for number in signals:
            signal.signal(number, stop)
        return process.wait(), bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_machine(config: Path) -> None:
    # The launchers would say so too, at the end of a long traceback.
    settings = read_file(config)[0]
    lacking = [name for name in ("deepspeed", "transformers") if not find_spec(name)]
    if settings.get("distributed_type") == "DEEPSPEED" and lacking:
        raise UserError(f"--launch {config.stem}: needs {lacking[0]}. Install it: pip install 'clars[deepspeed]'.")
    if settings.get("num_processes") == "gpu" and not torch.cuda.is_available():
        raise UserError(f"--launch {config.stem}: needs GPUs, and torch finds none here. Choose --launch cpu.")


def _short(path: Path) -> str:
    """Return `path` relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
