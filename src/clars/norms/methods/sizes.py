"""The sizes of one call of a layer, and what the exact methods need for it; `strategy` says what the methods are."""

from dataclasses import dataclass
from math import ceil, prod

import torch

from clars.native.kernels import most_workers


@dataclass(frozen=True)
class Problem:
    """The sizes of one call of a layer, by which the method for its weight gradient is chosen.

    In each of `groups` groups, the gradient of an example is a sum over T positions of products of P outputs and
    D inputs. D counts each channel once per tap of the kernel.
    """

    examples: int
    positions: int
    inputs: int
    outputs: int
    channels: int
    input_size: tuple[int, ...]
    device: str
    dtype: torch.dtype
    threads: int
    channels_last: bool = False
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    kernels: bool = False  # whether the compiled kernels apply (see `cpu`)
    blocks: int = 1  # of the batch, one of which is measured

    @property
    def input_positions(self) -> int:
        return prod(self.input_size)

    @property
    def operations(self) -> int:
        """Operations of the weight gradient."""
        return 2 * self.examples * self.groups * self.positions * self.inputs * self.outputs

    @property
    def shifted(self) -> bool:
        """Whether windows overlap so that their inner products are sums of shifted ones (see `gram.window_gram`).

        Each phase of a stride has sums of its own, which only the compiled kernels form.
        """
        overlap = any(taps > step for taps, step in zip(self.kernel, self.stride))
        return overlap and (self.kernels or set(self.stride) == {1})

    @property
    def phases(self) -> int:
        """How many phases of the stride the windows see."""
        return prod([min(taps, step) for taps, step in zip(self.kernel, self.stride)])

    @property
    def phase_positions(self) -> int:
        """How many positions of the input each of them has at most."""
        return prod([ceil(length / step) for length, step in zip(self.input_size, self.stride)])


# Bytes that one piece of work may take, by default, per processor core and on an accelerator: small enough for a
# core's cache, large enough to keep an accelerator busy.
WORKING_SET = {"cpu": 3 * 2**20, "cuda": 256 * 2**20}


def transient(problem: Problem, method: str) -> int:
    """Return the bytes that `method` needs per example beside input, output gradient and the gradient itself."""
    weight = problem.groups * problem.inputs * problem.outputs
    laid_out = prod(problem.kernel) > 1 or set(problem.stride) > {1}
    windows = problem.groups * problem.inputs * problem.positions if laid_out else 0
    if method == "direct" and problem.groups > 1:  # a vector's lanes of padded images, and a few for what is laid out
        images = 16 * (problem.positions + 2 * problem.input_positions)
    else:
        images = problem.positions * problem.outputs + problem.input_positions * problem.channels
    seen = problem.phase_positions
    phase = seen**2 + max(seen, problem.positions) ** 2 + (seen * problem.channels if problem.phases > 1 else 0)
    numbers = {
        "matrix": weight + windows,
        "each": 2 * weight,
        "direct": 2 * weight + images,
        "grouped": weight,
        "gram": problem.positions**2 + (phase if problem.shifted else problem.positions**2 + windows),
        "fused": 1,
    }[method]
    return numbers * problem.dtype.itemsize


def compiled(problem: Problem, method: str) -> bool:
    """Tell whether a compiled kernel does the whole of `method`."""
    plain = problem.groups == 1 and prod(problem.kernel) == 1
    windows = problem.groups == 1 and len(problem.kernel) == 2
    by_matrices = (method == "matrix" and plain) or (method == "gram" and (plain or windows))
    return problem.kernels and (method in ("each", "direct") or by_matrices)


def at_once(problem: Problem, method: str, memory: int | None) -> int:
    """Return how many examples a compiled kernel has under way: one per thread, unless memory forbids."""
    return min(problem.examples, problem.threads, most_workers(transient(problem, method), memory))


def chunks(problem: Problem, method: str, memory: int | None) -> list[slice]:
    """Cut the examples into consecutive slices of about equal length whose working set stays within the bound."""
    per_example = transient(problem, method)
    if compiled(problem, method):
        size = at_once(problem, method, memory)
        return [slice(start, min(start + size, problem.examples)) for start in range(0, problem.examples, size)]
    if memory is None:  # a cache is wanted, so count what is read too
        read = problem.groups * (problem.outputs * problem.positions + problem.channels * problem.input_positions)
        per_example += read * problem.dtype.itemsize
        memory = WORKING_SET["cuda"] if problem.device != "cpu" else WORKING_SET["cpu"] * problem.threads
    if method == "grouped" and one_by_one(problem):
        return slices(problem.examples, 1, 1)
    return slices(problem.examples, per_example, memory)


def one_by_one(problem: Problem) -> bool:
    """Tell whether the method "grouped" takes an example at a time.

    On processors, few channels are slow as one group of many; and channels that lie together in memory would have to be
    laid apart to become groups, which takes longer than the calls for large images.
    """
    few = problem.groups == 1 and problem.channels % 8 != 0
    return problem.device == "cpu" and (few or (problem.channels_last and problem.positions >= 128))


def slices(examples: int, bytes_per_example: int, memory: int) -> list[slice]:
    """Cut `examples` into consecutive slices of about equal length of at most `memory` bytes, one example at least."""
    most = min(examples, max(1, memory // max(1, bytes_per_example)))
    size = ceil(examples / ceil(examples / most))
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]
