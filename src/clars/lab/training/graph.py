"""Training with every step in a CUDA graph: what it needs, and the step that is then taken."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from clars.errors import UserError
from clars.graphs.graphed import Graphed
from clars.lab.launching.division import Division
from clars.lab.training.momentum import OURS

OPTION = "--cuda-graph"
WITHOUT = "or leave the option out."


class Run(Protocol):
    """What is asked of a run."""

    accelerator: Accelerator
    division: Division
    inner: Optimizer
    strategy: str


def before_start(asked: bool) -> None:
    """Prepare the environment of this process, before processes are joined.

    NCCL's watch over its own operations would ask the device about those that are being captured. Without it, a process
    that is lost is noticed by the launcher alone.
    """
    if asked and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")


@contextmanager
def aside(asked: bool) -> Iterator[None]:
    """Put a strategy into force on another stream: DistributedDataParallel keeps the one of then.

    The stream of before waits for what was begun there.
    """
    if not (asked and torch.cuda.is_available()):
        yield
        return
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


def step_of(run: Run, step: Callable, asked: bool, *, frozen_steps: int, noise_every: int | None) -> Callable:
    """Return what takes a step of a run: a graph's replay where it is asked for, and `step` otherwise.

    Args:
        run: its strategy is in force.
        step: takes a batch on the device through forward, backward and the optimizer; returns the loss.
        asked: the option.
        frozen_steps: for how many steps the classifier is frozen.
        noise_every: steps between lines of the noise scale.

    Raises:
        UserError: a graph is asked for and cannot be had; names the reason and the remedy.
    """
    if not asked:
        return step
    if problem := _problem(run, frozen_steps, noise_every):
        raise UserError(f"{OPTION}: {problem}")
    return Graphed(step)


def _problem(run: Run, frozen_steps: int, noise_every: int | None) -> str | None:
    """Return why a run's steps cannot be captured, and what to do; None where they can."""
    accelerator, norms = run.accelerator, getattr(run.inner, "norms", None)
    if accelerator.device.type != "cuda":
        return f"needs a GPU, and this run is on the processor ({accelerator.device}). Launch it with gpu, {WITHOUT}"
    if run.strategy not in ("single", "ddp"):
        return f"cannot be had under {run.strategy}, which moves parameters in each step. Launch with ddp, {WITHOUT}"
    if run.division.accumulation > 1:
        return (
            f"a graph takes a whole step at once, and here one has {run.division.accumulation} micro-batches of "
            f"{run.division.micro_batch}. Give a larger --micro-batch, more processes, {WITHOUT}"
        )
    if accelerator.mixed_precision == "fp16":
        return f"with fp16 each step asks the device whether gradients overflowed. Use bf16, {WITHOUT}"
    if not isinstance(run.inner, OURS):
        return f"{type(run.inner).__name__} counts its steps on the processor. Use another optimizer, {WITHOUT}"
    if norms is not None and norms.estimator.blocks > 1:
        return f"estimator: subset draws other examples in each step. Use exact or group, {WITHOUT}"
    if frozen_steps:
        return f"schedule.frozen_head_epochs makes the first steps other ones than the rest. Set it to 0, {WITHOUT}"
    if noise_every:
        return f"--noise-scale looks at the gradient within the step. Leave it out, {WITHOUT}"
    return None
