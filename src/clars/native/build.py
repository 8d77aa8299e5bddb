"""Compiles the C++ below this folder, once per machine and version, and loads them."""

import hashlib
import os
import platform
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

from clars.cache import folder
from clars.errors import printable
from clars.native import cached, compiler

SWITCH = "CLARS_CPU_KERNELS"  # "0": do without them
SOURCES = sorted(Path(__file__).parent.glob("*/*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*/*.h"))


@dataclass(frozen=True)
class State:
    """Whether the kernels can be used, and why or why not."""

    loaded: bool
    text: str


@cache
def load() -> State:
    """Load the kernels, compiled first where this machine has not got them yet. Never raises: they are optional."""
    if os.environ.get(SWITCH) == "0":
        return State(False, f"switched off by {SWITCH}=0")
    if platform.system() != "Linux" or "OpenMP" not in torch.__config__.parallel_info():
        return State(False, f"not made for {platform.system()} or for this build of torch")
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return State(False, "this build of torch is without oneDNN")
    try:
        library = folder("kernels") / f"{_fingerprint()}.so"
        _make_once(library)
        torch.ops.load_library(library)
    except Exception as error:  # of a disk, a compiler, the loader or a lock, of which some file systems have none
        return State(False, f"could not be compiled or loaded: {printable(_first_line(error))}")
    return State(True, str(library))


def _fingerprint() -> str:
    """Return a name that changes with whatever the compiled code depends on."""
    parts = [path.read_bytes() for path in SOURCES + HEADERS]
    parts += [text.encode() for text in (torch.__version__, platform.machine(), _instructions(), *platform.libc_ver())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _instructions() -> str:
    """Return what this processor can do: a folder that several machines share holds a library for each kind."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _make_once(library: Path) -> None:
    """Compile unless the library is there as it was made, or wait for another process of this machine that does.

    Raises:
        OSError: it cannot be made, or others could put another in its place.
    """
    if cached.is_sound(library):
        cached.require_private(library.parent)
        return
    commands = compiler.command()
    cached.require_private(library.parent)
    with FileLock(library.with_name(f".{library.stem}.lock"), timeout=compiler.LONGEST):
        if cached.is_sound(library):
            return
        if os.path.lexists(library):
            warnings.warn(
                f"{library} is not what this user compiled: damaged, changed or of another origin. It is made again.",
                stacklevel=2,
            )
        _compile(commands, library)
        if not cached.is_sound(library):
            raise OSError(f"{library} is not on the disk as it was compiled")


def _compile(command: list[str], library: Path) -> None:
    """Compile to a temporary folder and put the result in place whole."""
    print("clars: compiling its kernels for this processor, once; a minute or two", file=sys.stderr, flush=True)
    root = Path(torch.__file__).parent
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    options = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-fopenmp", abi, *includes]
    with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
        objects = [str(Path(temporary, path.stem + ".o")) for path in SOURCES]
        compiler.run(
            [
                [*command, *options, _contraction(path), "-c", str(path), "-o", target]
                for path, target in zip(SOURCES, objects)
            ],
            Path(temporary),
        )
        # Without -fopenmp: the OpenMP calls must find torch's own runtime, through libtorch_cpu, not a second one.
        made = Path(temporary, library.name)
        linking = [*command, "-shared", *objects, f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", "-o", str(made)]
        compiler.run([linking], Path(temporary))
        cached.keep(made, library)


def _contraction(source: Path) -> str:
    """Return the option on fused multiplication and addition: the update does it by name, where torch does."""
    return f"-ffp-contract={'off' if source.stem == 'optimizer' else 'fast'}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
