"""What a tracker that accelerate knows is told of a run at its beginning: every setting, and where it comes from."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from clars.lab.runs.jobs import Job
from clars.lab.runs.record import finite, flat


def begin(accelerator: Accelerator, job: Job, machine: Mapping[str, Any]) -> None:
    """Start the trackers of a run, with its name, all hyper-parameters, recipe, seed and tags.

    Args:
        accelerator: made with `log_with`.
        job: recipe, seed and the folder, which local trackers write into.
        machine: what the record says of command, commit, device and versions.
    """
    resolved = job.resolved
    name = f"{resolved.short_name} seed {job.seed}"
    tags = [resolved.name, resolved.version, resolved.recipe.optimizer.name, f"batch {resolved.recipe.batch_size}"]
    accelerator.project_configuration.logging_dir = str(job.folder)
    own = {
        "wandb": {"name": name, "tags": tags, "dir": str(job.folder)},
        "mlflow": {"run_name": name, "tags": dict(zip(("recipe", "version", "method", "batch"), tags))},
    }
    accelerator.init_trackers(resolved.short_name, hyper_parameters(job, machine), own)


def histograms(trackers: Iterable[GeneralTracker], statistics: Iterable[Mapping[str, Any]], step: int) -> None:
    """Show how the layers' statistics are distributed, by name, where a tracker has histograms.

    Args:
        trackers: of the run; wandb and tensorboard have histograms, others are passed over.
        statistics: those of each layer, by name; what is no finite number is left out.
        step: of the optimizer.
    """
    values: dict[str, list[float]] = {}
    for layer in statistics:
        for name, value in layer.items():
            if isinstance(value, float) and finite(value) is not None:
                values.setdefault(f"layers/{name}", []).append(value)
    for tracker in trackers:
        if tracker.name == "tensorboard":
            for name, found in values.items():
                tracker.writer.add_histogram(name, np.array(found), step)
        elif tracker.name == "wandb":
            from wandb import Histogram

            tracker.log({name: Histogram(found) for name, found in values.items()}, step=step)


def hyper_parameters(job: Job, machine: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return all settings of a run by their whole names, such as optimizer.momentum, as values that trackers take."""
    resolved = job.resolved
    origin = {
        "recipe": resolved.full_name,
        "recipe_sha256": resolved.sha256,
        "overrides": " ".join(resolved.overrides),
        "seed": job.seed,
        "peak_rate": resolved.peak_rate,
        "command": machine["command"],
        "device": machine["device"],
        "git.commit": machine["git"].get("commit"),
    }
    found = origin | dict(flat(resolved.recipe.model_dump(mode="json")))
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in found.items()}
