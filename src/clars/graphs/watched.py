"""What a step does while it is taken in Python: which optimizers step, and which trackers measure."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from clars.errors import UserError
from clars.norms.estimator import CAPTURED
from clars.norms.tracker import TRACKERS, ExampleNorms
from clars.optim.callers import stepping_scaler

SCALED = (
    "The step is taken by a GradScaler, which asks the device whether gradients overflowed: that cannot be captured. "
    "Use bfloat16, which needs none (torch.autocast(device, torch.bfloat16)), or take the step without a graph."
)
SCHEDULED = (
    "The step changes the learning rate by itself, and a graph would repeat one. Call the schedule's step() after the "
    "graphed step, not in it: it is followed from there."
)
NO_STEP = "The step that is to be captured takes no optimizer step. Give all of it: zero_grad, forward, backward, step."


class Watched:
    """Notes what happens in a step, as often as it is watched, and refuses what cannot be repeated.

    Attributes:
        optimizers: that have stepped in the last step that was watched, in their order.
        trackers: whose model had a backward pass in it.
    """

    def __init__(self) -> None:
        self.optimizers: list[Optimizer] = []
        self.trackers: list[ExampleNorms] = []

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch one step.

        Raises:
            UserError: a GradScaler takes it; it changes rates; the estimator of a tracker draws; nothing steps.
        """
        rates = {id(optimizer): _rates(optimizer) for optimizer in self.optimizers}
        passes = {tracker: tracker.last_pass for tracker in TRACKERS}
        found: list[Optimizer] = []

        def before(optimizer: Optimizer, *_) -> None:
            if stepping_scaler() is not None:
                raise UserError(SCALED)
            if rates.setdefault(id(optimizer), _rates(optimizer)) != _rates(optimizer):
                raise UserError(SCHEDULED)

        def after(optimizer: Optimizer, *_) -> None:
            if optimizer not in found:
                found.append(optimizer)

        def scheduled(*_, **__) -> None:
            raise UserError(SCHEDULED)

        hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
        try:
            with ExitStack() as stack:
                for kind in _schedules(LRScheduler):
                    stack.enter_context(_replaced(kind, scheduled))
                yield
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise UserError(NO_STEP)
        if any(_rates(optimizer) != rates[id(optimizer)] for optimizer in found):
            raise UserError(SCHEDULED)
        self.optimizers = found
        self.trackers = [tracker for tracker in TRACKERS if tracker.last_pass != passes.get(tracker)]
        if any(tracker.estimator.blocks > 1 for tracker in self.trackers):
            raise UserError(CAPTURED)


def _schedules(kind: type) -> Iterator[type]:
    """Yield those of a class and its subclasses that have a step of their own."""
    if "step" in vars(kind):
        yield kind
    for each in kind.__subclasses__():
        yield from _schedules(each)


@contextmanager
def _replaced(kind: type, step: Callable) -> Iterator[None]:
    """Have another function in the place of a schedule's step."""
    own = vars(kind)["step"]
    kind.step = step
    try:
        yield
    finally:
        kind.step = own


def _rates(optimizer: Optimizer) -> list:
    return [group.get("lr") for group in optimizer.param_groups]
