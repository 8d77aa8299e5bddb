"""How the training loss falls within the first epoch, where warmup acts, without waiting for the device."""

import torch
from accelerate import Accelerator
from torch import Tensor

PARTS = 20


class FirstEpoch:
    """The sum of the steps' losses at the end of each of 20 equal parts of the first epoch, or of each step.

    Args:
        steps: of an epoch.
        sums: those that the state to resume from holds.
    """

    def __init__(self, steps: int, sums: tuple[float, ...] = ()) -> None:
        parts = min(PARTS, steps)
        self.ends = [part * steps // parts for part in range(1, parts + 1)]
        self.sums = [torch.tensor(value, dtype=torch.float64) for value in sums]

    def note(self, step: int, loss_sum: Tensor) -> None:
        """Keep the sum of the losses so far, a scalar tensor, if a part ends with this step, counted from 1."""
        if len(self.sums) < len(self.ends) and step == self.ends[len(self.sums)]:
            self.sums.append(loss_sum)

    def reduced(self, accelerator: Accelerator) -> tuple[float, ...]:
        """Return the sums as means over the processes, all of which take part."""
        if not self.sums:
            return ()
        own = torch.stack([value.to(accelerator.device) for value in self.sums])
        return tuple(accelerator.reduce(own, "mean").tolist())

    def losses(self, accelerator: Accelerator) -> list[float]:
        """Return the mean loss of each part that is over; every process takes part."""
        sums, ends = (0.0, *self.reduced(accelerator)), [0, *self.ends]
        return [(sums[part] - sums[part - 1]) / (ends[part] - ends[part - 1]) for part in range(1, len(sums))]
