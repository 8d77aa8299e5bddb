"""What modules of torch call, known without running their forward.

A function of Python that a mode intercepts costs several times one of C++. So where a module of torch is called again,
what its forward leads to is looked for at once.
"""

from collections.abc import Callable
from typing import NamedTuple

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


def _convolution(function: Callable) -> Callable[[nn.Module, Tensor], FunctionCall | None]:
    def called(module: nn.Module, x: Tensor) -> FunctionCall | None:
        if module.padding_mode != "zeros":
            return None
        own, how = module._parameters, (module.stride, module.padding, module.dilation, module.groups)
        return FunctionCall(function, (x, own.get("weight"), own.get("bias"), *how))

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


CALLED: dict[Callable, Callable[[nn.Module, Tensor], FunctionCall | None]] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _convolution(F.conv1d),
    nn.Conv2d.forward: _convolution(F.conv2d),
    nn.Conv3d.forward: _convolution(F.conv3d),
    nn.modules.batchnorm._BatchNorm.forward: _batch_norm,
    nn.LayerNorm.forward: _layer_norm,
    nn.GroupNorm.forward: _group_norm,
}
BESIDE = {nn.modules.batchnorm._BatchNorm.forward: _count}  # what else they do
