"""Starting `recipes/train.py` through `accelerate launch`."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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

    Ctrl-C reaches the training processes, which stop in their own way and are waited for.

    Raises:
        UserError: the configuration wants GPUs and there are none.
    """
    _require_devices(config)
    line = command(arguments, config)
    print(f"$ {shlex.join(line)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        module = [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
        # Neither we nor the launcher may die of Ctrl-C while training saves its state; `exits.guard` undoes this there.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            done = subprocess.run([*module, *line[1:]], env={**os.environ, exits.FILE: str(code)}, check=False)
        finally:
            signal.signal(signal.SIGINT, handler)
        return exits.reported(code, otherwise=done.returncode)


def _require_devices(config: Path) -> None:
    # torchrun would say so too, at the end of a long traceback.
    if read_file(config)[0].get("num_processes") == "gpu" and not torch.cuda.is_available():
        raise UserError(f"--launch {config.stem}: needs GPUs, and torch finds none here. Choose --launch cpu.")


def _short(path: Path) -> str:
    """Return `path` relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
