"""Gradients that a GradScaler has unscaled, and the norms that must follow."""

import sys

from torch.amp import GradScaler


def unscaled_by() -> float | None:
    """Return by what factor a GradScaler has multiplied the gradients whose step it is taking; None without one.

    A GradScaler that calls an optimizer's `step()` tells nothing of itself, unless the optimizer claims to unscale its
    gradients by itself; and such an optimizer may not be clipped in the loops of other libraries. So the scaler is
    looked up among the callers, of whom it is one. By then it has unscaled the gradients, now or when it was told to
    (`unscale_`), and it is the scale of then that it still has: it changes in `update()`, after the step.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("_maybe_opt_step", "step"):
            caller = frame.f_locals.get("self")
            if isinstance(caller, GradScaler):
                return 1.0 / caller.get_scale()
        frame = frame.f_back
    return None
