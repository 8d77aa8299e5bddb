"""The record of a run, put together from what the run knows."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator

from clars.lab.evaluation import Scores
from clars.lab.launching.division import Division
from clars.lab.runs.jobs import Job
from clars.lab.runs.record import PROTOCOL, Init, Record
from clars.lab.runs.resume import Progress
from clars.lab.training.command import repeating


def record_of(
    job: Job,
    cut: Division,
    now: Progress,
    scores: Scores,
    status: str,
    machine: Mapping[str, object],
    init: Init | None,
) -> Record:
    """Return the record.

    Args:
        job: recipe and seed.
        cut: how the global batch is divided.
        now: how far the run is.
        scores: the last evaluation.
        status: how the run ends.
        init: what the weights began with.
        machine: what `in_force` and `provenance` return.
    """
    resolved, recipe = job.resolved, job.resolved.recipe
    seen = now.step * recipe.batch_size
    return Record(
        recipe=resolved.name,
        version=resolved.version,
        recipe_sha256=resolved.sha256,
        overrides=list(resolved.overrides),
        seed=job.seed,
        **machine,
        world_size=cut.world_size,
        global_batch_size=cut.global_batch,
        micro_batch_size=cut.micro_batch,
        accumulation=cut.accumulation,
        steps=now.step,
        epochs=now.epoch,
        settings=recipe.model_dump(mode="json"),
        optimizer=recipe.optimizer.model_dump(mode="json"),
        schedule={**recipe.schedule.model_dump(mode="json"), "peak_rate": resolved.peak_rate},
        final=scores._asdict(),
        best=None if now.best_top1 is None else {"top1": now.best_top1, "epoch": now.best_epoch},
        wall_seconds=now.wall_seconds,
        examples_per_second=seen / now.train_seconds if now.train_seconds else None,
        status=status,
        weights="ema" if recipe.ema else "last",
        init=init,
        protocol=PROTOCOL,
    )


def in_force(
    job: Job,
    cut: Division,
    strategy: str,
    accelerator: Accelerator,
    noise_every: int | None = None,
    cuda_graph: bool = False,
) -> dict[str, object]:
    """Return the entries strategy, mixed_precision, threads and command of a record."""
    threads, device, precision = torch.get_num_threads(), accelerator.device.type, accelerator.mixed_precision
    command = repeating(job, cut, strategy, device, precision, threads, noise_every, cuda_graph)
    return {"strategy": strategy, "mixed_precision": precision, "threads": threads, "command": command}
