"""What modules of torch call, known without running their forward.

A function of Python that a mode intercepts costs several times one of C++. So where a module of torch is called again,
what its forward leads to is looked for at once.

Only where nothing can stand between: an object of torch's own class, none of whose functions somebody has replaced, and
no other mode of theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FunctionCall(NamedTuple):
    """The function that a module's forward calls, as a mode is told: its arguments, those by keyword last."""

    function: Callable
    values: tuple
    keywords: tuple[str, ...] = ()


_AFFINE = ("weight", "bias", "eps")
_BATCH_NORM = ("weight", "bias", "training", "momentum", "eps")


def _linear(module: nn.Linear, x: Tensor) -> FunctionCall:
    own = module._parameters
    return FunctionCall(F.linear, (x, own.get("weight"), own.get("bias")))


def _convolution(name: str) -> Callable[[nn.Module, Tensor], FunctionCall | None]:
    def called(module: nn.Module, x: Tensor) -> FunctionCall | None:
        if module.padding_mode != "zeros":
            return None
        own, how = module._parameters, (module.stride, module.padding, module.dilation, module.groups)
        return FunctionCall(getattr(F, name), (x, own.get("weight"), own.get("bias"), *how))

    return called


def _batch_norm(module: nn.modules.batchnorm._BatchNorm, x: Tensor) -> FunctionCall | None:
    own, buffers, training = module._parameters, module._buffers, module.training
    mean, variance = buffers.get("running_mean"), buffers.get("running_var")
    if module.momentum is None or (mean is None and not training):
        return None
    running = (mean, variance) if not training or module.track_running_stats else (None, None)
    how = (training, module.momentum, module.eps)
    return FunctionCall(F.batch_norm, (x, *running, own.get("weight"), own.get("bias"), *how), _BATCH_NORM)


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> FunctionCall:
    own = module._parameters
    how = (module.normalized_shape, own.get("weight"), own.get("bias"), module.eps)
    return FunctionCall(F.layer_norm, (x, *how), _AFFINE)


def _group_norm(module: nn.GroupNorm, x: Tensor) -> FunctionCall:
    own = module._parameters
    how = (module.num_groups, own.get("weight"), own.get("bias"), module.eps)
    return FunctionCall(F.group_norm, (x, *how), _AFFINE)


def _count(module: nn.modules.batchnorm._BatchNorm) -> None:
    """Count a batch, as the module's own forward does before it normalises."""
    counted = module._buffers.get("num_batches_tracked")
    if counted is not None and module.training and module.track_running_stats:
        counted.add_(1)


@dataclass(frozen=True)
class Known:
    """What is known of a class of torch.

    Attributes:
        called: tells what an object's forward calls, with an input.
        beside: does what else that does.
        functions: those of the class that take part, by name, as torch made them.
    """

    called: Callable[[nn.Module, Tensor], FunctionCall | None]
    beside: Callable[[nn.Module], None] | None
    functions: dict[str, Callable]

    def holds(self, module: nn.Module) -> bool:
        """Tell whether all of it is as torch made it, now, in this thread."""
        kind, own = type(module), module.__dict__
        for name, function in self.functions.items():
            if getattr(kind, name) is not function or (name != "forward" and name in own):  # forward is the tracker's
                return False
        return torch._C._len_torch_function_stack() == 1  # the tracker's alone


def _known(kind: type[nn.Module], called: Callable, beside: Callable | None, *names: str) -> tuple[type, Known]:
    return kind, Known(called, beside, {name: getattr(kind, name) for name in ("forward", *names)})


KNOWN: dict[type[nn.Module], Known] = dict(
    [
        _known(nn.Linear, _linear, None),
        _known(nn.Conv1d, _convolution("conv1d"), None, "_conv_forward"),
        _known(nn.Conv2d, _convolution("conv2d"), None, "_conv_forward"),
        _known(nn.Conv3d, _convolution("conv3d"), None, "_conv_forward"),
        _known(nn.BatchNorm1d, _batch_norm, _count, "_check_input_dim"),
        _known(nn.BatchNorm2d, _batch_norm, _count, "_check_input_dim"),
        _known(nn.BatchNorm3d, _batch_norm, _count, "_check_input_dim"),
        _known(nn.LayerNorm, _layer_norm, None),
        _known(nn.GroupNorm, _group_norm, None),
    ]
)
