"""Who has called step(), where that changes what a step means."""

import sys
from collections.abc import Iterator
from types import FrameType

from torch.amp import GradScaler


def unscaled_by() -> float | None:
    """Return by what factor a GradScaler has multiplied the gradients whose step it is taking; None without one.

    A GradScaler that calls an optimizer's `step()` tells nothing of itself, unless the optimizer claims to unscale its
    gradients by itself; and such an optimizer may not be clipped in the loops of other libraries. So the scaler is
    looked up among the callers, of whom it is one. By then it has unscaled the gradients, now or when it was told to
    (`unscale_`), and it is the scale of then that it still has: it changes in `update()`, after the step.
    """
    scaler = stepping_scaler()
    return None if scaler is None else 1.0 / scaler.get_scale()


def stepping_scaler() -> GradScaler | None:
    """Return the GradScaler that is taking the step under way."""
    for frame in _callers():
        if frame.f_code.co_name in ("_maybe_opt_step", "step"):
            caller = frame.f_locals.get("self")
            if isinstance(caller, GradScaler):
                return caller
    return None


def makes_state() -> bool:
    """Tell whether torch only has the state made, by a step with gradients and rates of zero.

    `torch.distributed.checkpoint` takes such a step to learn what the state of an optimizer looks like.
    """
    return any(
        frame.f_code.co_name == "_init_optim_state"
        and frame.f_globals.get("__name__", "").startswith("torch.distributed.checkpoint.")
        for frame in _callers()
    )


def _callers() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back
