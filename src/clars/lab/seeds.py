"""The seed of a run, and the draws that follow from it and from where they are made: nothing of them needs saving."""

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a seed on the command line is checked without torch
    import torch

LARGEST = 2**32 - 1  # that NumPy takes


def problem(seed: object) -> str | None:
    """Return what is wrong with a seed, in words that follow its name; None for a whole number of 32 bits."""
    if type(seed) is int and 0 <= seed <= LARGEST:
        return None
    return f"{seed!r} is no seed: take a whole number from 0 to {LARGEST}"


def derived(*place: int) -> int:
    """Return the 32-bit seed of a place, such as (seed of the run, epoch, example); others have unrelated ones."""
    import numpy as np

    return int(np.random.SeedSequence(place).generate_state(1)[0])


def seed_step(device: "torch.device", *place: int) -> None:
    """Begin all random choices of a step anew: Python's, NumPy's, and torch's on the processor and on `device`."""
    import numpy as np
    import torch

    number = derived(*place)
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":  # where there is none, torch.manual_seed would queue a call for it, at every step
        torch.cuda.manual_seed(number)


def seed_example(*place: int) -> None:
    """Begin the random choices for one example anew, those of `random`, NumPy and torch on the processor."""
    import numpy as np
    import torch

    number = derived(*place)
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)  # torch.manual_seed would also seed every device, for each example
