"""The rate over time, as a factor of the peak rate."""

import math

from clars.lab.recipes.schema import Schedule


def rate_factor(schedule: Schedule, step: int, steps: int, steps_per_epoch: int, scaling: float) -> float:
    """Return lr_t / peak rate for the step with index t = `step` of `steps`, in (0, 1].

    With warmup of W steps the rate rises linearly from the base rate (peak / scaling), as gradual warmup does in
    Goyal et al. 2017 (arXiv 1706.02677, section 2.2), or from 1 / W of the peak, and reaches the peak at step W, or at
    the last one before; from there the decay runs over the steps that are left: (1 - p)^power, (1 + cos(pi p)) / 2, or
    1, with p the part of them that is over.

    Args:
        schedule: the recipe's section.
        step: number of steps taken.
        steps: number of steps of the whole run.
        steps_per_epoch: steps in an epoch.
        scaling: peak rate / base rate, the factor of scaling; below 1 there is nothing to warm up from but zero.
    """
    warmup = min(round(schedule.warmup_epochs * steps_per_epoch), steps - 1)
    if step < warmup and schedule.warmup_from == "zero":
        return (step + 1) / warmup
    if step < warmup:
        start = min(1.0, 1.0 / scaling)
        return start + (1.0 - start) * step / warmup
    over = (step - warmup) / (steps - warmup)
    if schedule.name == "polynomial":
        return (1.0 - over) ** schedule.power
    if schedule.name == "cosine":
        return (1.0 + math.cos(math.pi * over)) / 2
    return 1.0
