"""What a tracker that accelerate knows is told of a run at its beginning: every setting, and where it comes from."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from clars.lab.runs.jobs import Job
from clars.lab.runs.record import flat


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
