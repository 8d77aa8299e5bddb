"""What Triton and the assembler make of a kernel for GPUs that are not at hand."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ARCHITECTURES = (80, 90)


class Resources(NamedTuple):
    """What a compiled kernel takes: registers per thread, bytes spilled to memory per thread, bytes shared."""

    registers: int
    spilled: int
    shared: int


def resources(kernel, types: dict[str, str], constants: dict, architecture: int, **options) -> Resources:
    """Compile a kernel for CUDA devices of an architecture, such as 90; nothing runs.

    Args:
        kernel: as `compiling.compiled` returns it, outside of the interpreter.
        types: of its arguments that are no constants, by name: "*bf16", "i32", "fp32". One that is followed by ":16"
            is a multiple of 16, which holds for pointers of torch's tensors and for most strides.
        constants: the values of its constant arguments, by name.
        architecture: 80 for A100, 90 for H100 and H200.
        options: num_warps, num_stages and the like.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    aligned = [name for name, kind in types.items() if kind.endswith(":16")]
    names = list(kernel.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    signature = {name: types[name].removesuffix(":16") if name in types else "constexpr" for name in names}
    source = triton.compiler.ASTSource(kernel, signature, {(names.index(k),): v for k, v in constants.items()}, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return Resources(*_assembled(made.asm["ptx"], architecture), made.metadata.shared)


def _assembled(ptx: str, architecture: int) -> tuple[int, int]:
    """Return registers and spilled bytes, as the assembler that comes with Triton reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        target = f"sm_{architecture}{'a' if architecture >= 90 else ''}"
        line = [get_ptxas(architecture).path, "-v", f"--gpu-name={target}", str(source), "-o", str(source.with_suffix(".cubin"))]
        done = subprocess.run(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    told = done.stdout
    registers = max(map(int, re.findall(r"Used (\d+) registers", told)))
    return registers, sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", told)))
