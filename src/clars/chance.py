"""Chance: each draw follows from the run's seed and from where it is drawn, so that nothing of it needs saving."""

import random

import numpy as np
import torch


def derived_seed(*place: int) -> int:
    """Return the 32-bit seed of a place, such as (seed of the run, epoch, example); others have unrelated ones."""
    return int(np.random.SeedSequence(place).generate_state(1)[0])


def seed_step(device: torch.device, *place: int) -> None:
    """Begin all random choices of a step anew: Python's, NumPy's, and torch's on the processor and on `device`."""
    number = derived_seed(*place)
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":  # where there is none, torch.manual_seed would queue a call for it, at every step
        torch.cuda.manual_seed(number)


def seed_example(*place: int) -> None:
    """Begin the random choices for one example anew, those of `random` and of torch on the processor."""
    number = derived_seed(*place)
    random.seed(number)
    torch.default_generator.manual_seed(number)  # torch.manual_seed would also seed every device, for each example
