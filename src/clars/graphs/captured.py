"""A step that was captured, with all that must be put right before and after each repetition."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from clars.errors import QUOTED, UserError, shortened
from clars.graphs.steppers import Stepper, stepper
from clars.graphs.watched import Watched
from clars.native.capture import Capture

CANNOT = (
    "The step cannot be captured in a CUDA graph: {problem} What waits for the device cannot be in it: .item(), "
    ".cpu(), print and `if` of a tensor, indexing by a mask; nor what sends data to it, such as "
    "torch.tensor(..., device=...). Return tensors from the step and look at them outside of it."
)


class Captured:
    """One capture of a step, for inputs of the shapes of `inputs`.

    Args:
        step: called with nothing; it reads `inputs`.
        inputs: the static tensors.
        capture: what records.
        watched: the steps before.

    Raises:
        UserError: the step cannot be captured.
    """

    def __init__(self, step: Callable, inputs: Sequence[Tensor], capture: Capture, watched: Watched) -> None:
        self._inputs, self._capture = inputs, capture
        self._steppers: list[Stepper] = [stepper(optimizer) for optimizer in watched.optimizers]
        self._parameters = [
            p for each in self._steppers for group in each.optimizer.param_groups for p in group["params"]
        ]
        self._modules = [module for tracker in watched.trackers for module in tracker.model.modules()]
        self._options = self._present_options()
        self._replaced = False
        self._hooks = [
            each.optimizer.register_load_state_dict_post_hook(self._note_replaced) for each in self._steppers
        ]
        self.outputs = self._recorded(step, watched)
        self._trackers = [(tracker, tracker.kept()) for tracker in watched.trackers]
        for each in self._steppers:
            each.keep()
        self._gradients: list[tuple[nn.Parameter, Tensor | None]] = [(p, p.grad) for p in self._parameters]

    def is_stale(self) -> bool:
        """Tell whether something has changed since that the graph would not see.

        That is an option, the tensors of a state, where a parameter lies in memory or whether it is trained, or the
        mode of a tracked module.
        """
        return self._replaced or self._present_options() != self._options

    def __call__(self, inputs: Sequence[Tensor]) -> object:
        """Take a step with other inputs, and return the outputs, which the next step overwrites."""
        put(self._inputs, inputs)
        for each in self._steppers:
            each.write()
        self._capture.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        for tracker, kept in self._trackers:
            tracker.put(kept)
        for each in self._steppers:
            each.put()
        return self.outputs

    def close(self) -> None:
        """Leave the optimizers alone."""
        for hook in self._hooks:
            hook.remove()

    def _recorded(self, step: Callable, watched: Watched) -> object:
        first: list[Exception] = []  # what went wrong: to end a capture that has failed is an error too

        def work() -> object:
            try:
                return detached(step())
            except Exception as error:
                first.append(error)
                raise

        try:
            with ExitStack() as stack:
                for each in self._steppers:
                    each.write()
                    stack.enter_context(each.reading())
                stack.enter_context(watched.watch())
                return self._capture.record(work)
        except Exception as error:
            self.close()
            cause = (first or [error])[0]
            if isinstance(cause, UserError) or not isinstance(cause, RuntimeError):
                raise cause from None
            raise UserError(CANNOT.format(problem=shortened(str(cause).strip().splitlines()[0], QUOTED))) from cause

    def _present_options(self) -> list:
        parameters = [(parameter.data_ptr(), parameter.requires_grad) for parameter in self._parameters]
        modes = [module.training for module in self._modules]
        return [*(each.options() for each in self._steppers), parameters, modes]

    def _note_replaced(self, _) -> None:
        self._replaced = True


def put(static: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Give the static tensors the values of others."""
    with torch.no_grad():
        for place, value in zip(static, given):
            place.copy_(value, non_blocking=True)


def detached(values: object) -> object:
    """Return values of any structure with their tensors apart from the autograd graph, which would hold memory."""
    return tree_map_only(Tensor, Tensor.detach, values)
