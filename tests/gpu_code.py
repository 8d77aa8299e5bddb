"""What Triton and the assembler make of a kernel for GPUs that are not at hand."""

import re
import subprocess
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from clars.native.triton import launching

ARCHITECTURES = (80, 90)

# Bytes that a thread may spill: some versions of the assembler keep a number or two in memory to have a program more
# at a time. What does not fit spills hundreds.
FEW = 16

TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}


class Resources(NamedTuple):
    """What a compiled kernel takes: registers per thread, bytes spilled to memory per thread, bytes shared."""

    registers: int
    spilled: int
    shared: int


class Launch(NamedTuple):
    """A kernel as it was launched. See `code`, which takes the same."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]


def each_compiled(cases: dict, slow: dict):
    """Parametrize a test by `case`; those that take a while to compile together are left to the long checks."""
    marked = [pytest.param(case, marks=pytest.mark.slow, id=name) for name, case in slow.items()]
    each = pytest.mark.parametrize("case", [*(pytest.param(case, id=name) for name, case in cases.items()), *marked])
    return lambda test: able(each(test))


def _able() -> bool:
    try:
        major, minor, *_ = version("triton").split(".")
    except PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (3, 3)


with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")
able = pytest.mark.skipif(not _able(), reason="needs triton 3.3, which takes sources as `code` gives them")


def launches(call: Callable) -> list[Launch]:
    """Return the kernels that a call launches. None runs, so the tensors may be meta ones."""
    seen = []

    def record(launch, *tensors):
        seen.append(_specialized(launch.kernel, (*tensors, *launch.values), launch.options))

    with mock.patch.object(launching.Launch, "__call__", record):
        call()
    return seen


def _specialized(kernel, values: tuple, options: dict) -> Launch:
    """Return a launch with the types and constants that triton would compile the kernel for."""
    types, constants = {}, {}
    for parameter, value in zip(kernel.params, values, strict=True):
        if isinstance(value, torch.Tensor):
            types[parameter.name] = f"{TYPES[value.dtype]}:16"
        elif parameter.is_constexpr or (value == 1 and not parameter.do_not_specialize):
            constants[parameter.name] = value
        else:
            aligned = value % 16 == 0 and not parameter.do_not_specialize
            types[parameter.name] = f"{'i32' if abs(value) < 2**31 else 'i64'}{':16' if aligned else ''}"
    return Launch(kernel, types, constants, options)


def code(kernel, types: dict[str, str], constants: dict, options: dict, architecture: int):
    """Compile a kernel for CUDA devices of an architecture, such as 90; nothing runs.

    Args:
        kernel: as `compiling.compiled` returns it, outside of the interpreter.
        types: of its arguments that are no constants, by name: "*bf16", "i32", "fp32". One that is followed by ":16"
            is a multiple of 16, which holds for pointers of torch's tensors and for most strides.
        constants: the values of its constant arguments, by name.
        options: num_warps, num_stages and the like.
        architecture: 80 for A100, 90 for H100 and H200.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    aligned = [name for name, kind in types.items() if kind.endswith(":16")]
    names = list(kernel.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    signature = {name: types[name].removesuffix(":16") if name in types else "constexpr" for name in names}
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def resources(launch: Launch, architecture: int) -> Resources:
    """Return what a launched kernel takes on CUDA devices of an architecture."""
    made = code(*launch, architecture)
    return Resources(*_assembled(made.asm["ptx"], architecture), made.metadata.shared)


def _assembled(ptx: str, architecture: int) -> tuple[int, int]:
    """Return registers and spilled bytes, as the assembler that comes with Triton reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        target = f"sm_{architecture}{'a' if architecture >= 90 else ''}"
        line = [
            get_ptxas(architecture).path,
            "-v",
            f"--gpu-name={target}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    told = done.stdout
    registers = max(map(int, re.findall(r"Used (\d+) registers", told)))
    return registers, sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", told)))
