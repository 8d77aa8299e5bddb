"""What layers on accelerators are measured by: operators of torch, which torch.compile keeps whole.

Each runs a kernel in Triton where there is one for the device and the type, and else its twin, which forms the same by
torch's own operators. So whatever calls these runs on a processor as well. They belong into backward passes: their
results cannot be differentiated.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from clars.errors import UserError
from clars.native import operators, product_twins, twins, where
from clars.native.triton import compiling
from clars.native.triton import depthwise as depthwise_kernels
from clars.native.triton import fused_products as fused_kernels
from clars.native.triton import gram as gram_kernels
from clars.native.triton import normalisation as normalisation_kernels
from clars.precision import wide

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # that there are kernels for

_NAMESPACE = "clars_device"
_LIBRARY = torch.library.Library(_NAMESPACE, "DEF")
_WINDOWS = "Tensor gy, Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation"
_STATISTICS = "Tensor gy, Tensor x, Tensor mean, Tensor rstd, Tensor weight"
_WANTED = "bool needs_input, int first, int last, int group"
_AFFINE = "(Tensor, Tensor, Tensor, Tensor, Tensor)"


def _operator(
    schema: str, kernels: ModuleType, twin: ModuleType, shaped: Callable, arranged: Callable, fusible: bool = False
) -> Callable:
    """Define an operator by its schema; return what calls it.

    Args:
        schema: begins with the name of the functions that the two modules have for it.
        kernels, twin: in Triton, and by torch's operators.
        shaped: from the arguments to empty results of the right shapes, types and strides.
        arranged: from the twin's results and x to those, laid out in memory as the kernels lay them out.
        fusible: whether torch.compile is to see through the twin: it fuses what works on each element by itself.
    """
    name = schema.partition("(")[0]

    def run(gy: Tensor, x: Tensor, *arguments):
        if not gy.numel():
            empty = shaped(gy, x, *arguments)
            return empty.zero_() if isinstance(empty, Tensor) else tuple(value.zero_() for value in empty)
        if _have_kernels(gy.device.type, gy.dtype, x.dtype):
            return getattr(kernels, name)(gy, x, *arguments)
        return arranged(getattr(twin, name)(gy, x, *arguments), x)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", shaped, lib=_LIBRARY)
    torch.library.register_autograd(f"{_NAMESPACE}::{name}", _refuse, lib=_LIBRARY)
    operator = getattr(getattr(torch.ops, _NAMESPACE), name).default

    def called(*arguments):
        """Call the operator, or what it runs where nobody looks for operators, which costs half of it."""
        if operators.is_suspended():
            return arranged(getattr(twin, name)(*arguments), arguments[1]) if fusible else operator(*arguments)
        looked_for = torch.is_grad_enabled() or torch._C._len_torch_dispatch_stack()
        return (operator if looked_for else run)(*arguments)

    return called


def has_products(x: Tensor) -> bool:
    """Tell whether products are formed by kernels, or by their twins on a processor that stands for an accelerator.

    On an accelerator without Triton its own operators are better than the twins, which take an example at a time.
    """
    return x.dtype in DTYPES and (where.on_processor(x) or compiling.available(x.device.type))


@functools.cache
def _have_kernels(device: str, of_gy: torch.dtype, of_x: torch.dtype) -> bool:
    return of_gy == of_x and of_gy in DTYPES and compiling.available(device)


def _refuse(ctx, *gradients):
    raise UserError(
        "Norms that clars forms in a backward pass cannot be differentiated. Call backward without create_graph=True, "
        "or take the tracking away: norms.remove()."
    )


# Fakes: the last argument of the first three is the group, and of the fourth what is wanted (see `_WANTED`).
def _shaped_products(gy, x, kernel, stride, padding, dilation, groups, group):
    gradient = gy.new_empty((gy.shape[1], *kernel, x.shape[1] // groups), dtype=wide(gy.dtype))
    return gradient.permute(0, 3, 1, 2), _shaped_squares(gy, group)


def _shaped_depthwise(gy, x, kernel, stride, padding, dilation, group):
    gradient = gy.new_empty((*kernel, gy.shape[1], 1), dtype=wide(gy.dtype))
    return gradient.permute(2, 3, 0, 1), _shaped_squares(gy, group)


def _shaped_squares(gy, *others):
    group = others[-1]
    return gy.new_empty((gy.shape[0] + group - 1) // group, dtype=wide(gy.dtype))


def _shaped_affine(gy, x, mean, rstd, weight, *others):
    needs_input, first, last, group = others[-4:]
    kind = wide(x.dtype)
    own, squares = (x.new_empty(size, dtype=kind) for size in (weight.shape[0], (last - first + group - 1) // group))
    input_gradient = torch.empty_like(x) if needs_input else x.new_empty(0)
    return input_gradient, own, torch.empty_like(own), squares, torch.empty_like(squares)


def _channels_last(results, x):
    gradient, squares = results
    return gradient.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), squares


def _taps_first(results, x):
    gradient, squares = results
    return gradient.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1), squares


def _as_it_is(squares, x):
    return squares


def _like_input(results, x):
    input_gradient, *others = results
    if input_gradient is None:
        return x.new_empty(0), *others
    like = torch.empty_like(x)
    return input_gradient if input_gradient.stride() == like.stride() else like.copy_(input_gradient), *others


fused_products = _operator(
    f"fused_products({_WINDOWS}, int groups, int group) -> (Tensor, Tensor)",
    fused_kernels, product_twins, _shaped_products, _channels_last,
)  # fmt: skip
fused_squares = _operator(
    f"fused_squares({_WINDOWS}, int groups, int group) -> Tensor",
    fused_kernels, product_twins, _shaped_squares, _as_it_is,
)  # fmt: skip
gram_squares = _operator(
    f"gram_squares({_WINDOWS}, int group) -> Tensor", gram_kernels, product_twins, _shaped_squares, _as_it_is
)
depthwise_products = _operator(
    f"depthwise_products({_WINDOWS}, int group) -> (Tensor, Tensor)",
    depthwise_kernels, product_twins, _shaped_depthwise, _taps_first,
)  # fmt: skip
batch_norm_backward = _operator(
    f"batch_norm_backward({_STATISTICS}, bool training, {_WANTED}) -> {_AFFINE}",
    normalisation_kernels, twins, _shaped_affine, _like_input, fusible=True,
)  # fmt: skip
group_norm_backward = _operator(
    f"group_norm_backward({_STATISTICS}, int groups, {_WANTED}) -> {_AFFINE}",
    normalisation_kernels, twins, _shaped_affine, _like_input, fusible=True,
)  # fmt: skip
layer_norm_backward = _operator(
    f"layer_norm_backward({_STATISTICS}, {_WANTED}) -> {_AFFINE}",
    normalisation_kernels, twins, _shaped_affine, _like_input, fusible=True,
)  # fmt: skip
