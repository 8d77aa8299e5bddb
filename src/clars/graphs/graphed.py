"""`graphed`: from a function that takes a training step to one that has the device repeat it."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils._pytree import tree_flatten, tree_unflatten

from clars.errors import UserError, quoted
from clars.graphs.captured import Captured, detached, put
from clars.graphs.watched import Watched
from clars.native.capture import Capture, CudaCapture
from clars.native.where import on_processor

WARM_UP = 3
OFTEN = 3
WARM_UP_OF_MANY = 11  # DistributedDataParallel sets itself up for ten


def graphed(step: Callable[..., Any], warmup: int | None = None) -> Callable[..., Any]:
    """Return a function that takes the same training steps as `step`, from some step on by replaying a CUDA graph.

        def step(x, y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        step = clars.graphed(step)
        for x, y in loader:
            loss = step(x.cuda(non_blocking=True), y.cuda(non_blocking=True))
            schedule.step()

    Each call is one step: the first `warmup` are taken as they are, on a stream of their own; the next one is captured,
    and it and all later ones are replayed, with their inputs copied to where the graph reads them. A call with inputs
    of other shapes than the first, such as an epoch's last batch, is taken as it is.

    Followed in replays: the learning rates of all groups, for CLARS, LARS, LAMB, SGD, and optimizers of torch with
    capturable=True; draws on the device (dropout), from torch's generator, which may be seeded in between. After a
    change of another option, such as momentum, and after an optimizer's load_state_dict(), the step is taken once as
    it is, and captured anew. `optimizer.layer_stats()`, the sums of an `ExampleNorms`, and `.grad` are those of the
    last step. What else Python does in `step` is done when it is captured, and not again.

    With DistributedDataParallel, make that on another stream than the default one, and start the processes with
    TORCH_NCCL_ASYNC_ERROR_HANDLING=0, as torch's notes on CUDA graphs ask.

    Args:
        step: takes tensors on one GPU, in any structure of lists and dictionaries, and takes the whole step; nothing in
            it waits for the device. Other values are given as the first time, or the call is taken as it is. What it
            returns is detached, and in replays overwritten by the next one; clone what is to be kept.
        warmup: how many steps to take before; 3 by default, 11 with several processes.

    Raises:
        ValueError: warmup is not above 0. When it is called: an input is not on a GPU, or needs a gradient; a
            GradScaler takes the step; the step changes the rate by itself; estimator="subset"; parameters are cut
            (FSDP2, ZeRO); something in the step waits for the device.

    Warns:
        UserWarning: once, a value that is no tensor differs from that of the first call; the step had to be captured
            several times.
    """
    return Graphed(step, warmup)


class Graphed:
    """What `graphed` returns. `capture` makes what records and replays on a device; by default a CUDA graph."""

    def __init__(
        self,
        step: Callable[..., Any],
        warmup: int | None = None,
        capture: Callable[[torch.device], Capture] | None = None,
    ) -> None:
        if warmup is not None and (isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1):
            raise UserError(f"warmup={warmup!r} is not a number of steps: use a whole number above 0.")
        self._step, self._warmup, self._make = step, warmup, capture
        self._capture: Capture | None = None
        self._signature: tuple | None = None
        self._plain: list | None = None  # what is given beside tensors; None once it was warned of
        self._again = 0  # how often a capture was given up
        self._left = 0  # steps to take before one is captured
        self._static: list[Tensor] = []  # where the graph reads its inputs
        self._arguments: tuple[tuple, dict] = ((), {})  # those, and what is no tensor
        self._watched = Watched()
        self._captured: Captured | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Take one step."""
        values, structure = tree_flatten((arguments, options))
        inputs = [value for value in values if isinstance(value, Tensor)]
        if any(each.requires_grad for each in inputs):
            raise UserError("An input of the step needs a gradient, which a graph does not return. Detach it.")
        signature = (structure, tuple(map(_described, values)))
        if self._signature is None:
            self._begin(inputs)
            self._signature, self._plain = signature, _plain(values)
            self._static = [torch.empty_like(each) for each in inputs]
            places = iter(self._static)
            given = [next(places) if isinstance(value, Tensor) else value for value in values]
            self._arguments = tree_unflatten(given, structure)
        if not _same(signature, self._signature):
            self._warn_of_values(values)
            with self._capture.aside():
                return detached(self._step(*arguments, **options))
        if self._captured is not None and self._captured.is_stale():
            self._captured.close()
            self._capture.release()
            self._captured, self._left = None, 1
            self._count_again()
        if self._left:
            self._left -= 1
            with self._capture.aside(), self._watched.watch():
                put(self._static, inputs)  # so that what is captured meets tensors that lie in memory as before
                return detached(self._on_static())
        if self._captured is None:
            put(self._static, inputs)
            self._captured = Captured(self._on_static, self._static, self._capture, self._watched)
        return self._captured(inputs)

    def _on_static(self) -> Any:
        mine, named = self._arguments
        return self._step(*mine, **named)

    def _begin(self, inputs: Sequence[Tensor]) -> None:
        """Look at the first inputs.

        Raises:
            UserError: they cannot be those of a graph.
        """
        devices = {each.device for each in inputs}
        if not devices:
            raise UserError("The step is given no tensor. Give it the batch, which is what changes between replays.")
        if len(devices) > 1 or (self._make is None and any(map(on_processor, inputs))):
            named = ", ".join(sorted(map(str, devices)))
            raise UserError(
                f"A step in a CUDA graph takes inputs on one GPU, and these are on {named}. Send them there first; "
                "where there is no GPU, take the step as it is."
            )
        many = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
        self._left = self._warmup or (WARM_UP_OF_MANY if many else WARM_UP)
        self._capture = (self._make or CudaCapture)(devices.pop())

    def _count_again(self) -> None:
        """Warn, once, where captures are given up again and again."""
        self._again += 1
        if self._again == OFTEN:
            warnings.warn(
                f"The graphed step was captured {OFTEN} times: an option of an optimizer, where parameters lie in "
                "memory, or the mode of a model has changed between its steps, and each time a graph is lost. A "
                "schedule of the momentum changes it at every step (OneCycleLR without cycle_momentum=False).",
                stacklevel=4,
            )

    def _warn_of_values(self, values: Sequence[object]) -> None:
        """Warn, once, where what differs is a value that is no tensor: perhaps it does at every step."""
        if self._plain is not None and not _same(_plain(values), self._plain):
            warnings.warn(
                f"The graphed step was first called with {quoted(self._plain)} beside its tensors, and now with "
                f"{quoted(_plain(values))}: such a call is taken as it is, without the graph. Give it a tensor.",
                stacklevel=3,
            )
            self._plain = None


def _same(one: object, other: object) -> bool:
    """Tell whether what is given beside tensors is the same.

    Raises:
        UserError: it is of a kind that does not tell, such as an array.
    """
    try:
        return bool(one == other)
    except ValueError:
        raise UserError(
            "The graphed step was given something beside tensors that cannot be compared, such as a numpy array. "
            "Give it a tensor."
        ) from None


def _plain(values: Sequence[object]) -> list:
    return [value for value in values if not isinstance(value, Tensor)]


def _described(value: object) -> object:
    """Return what must be the same of an input in each replay."""
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value
