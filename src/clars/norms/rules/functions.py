"""The functions of torch in which a tracked parameter may appear, and the rule for each.

Each entry of `RULES` has the signature of the function it stands for, after the look-up of tracked parameters. Layers
are recognised by these calls and not by their class, so a subclass that pads first, activates afterwards or permutes
around the call is covered, and one that does something else with its parameters is not mistaken for its parent.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _ntuple

from clars.errors import UnsupportedLayerError
from clars.norms.rules.normalisation import BatchNorm, GroupNorm, LayerNorm
from clars.norms.rules.convolution import Conv, resolve_padding
from clars.norms.rules.embedding import Embedding
from clars.norms.rules.linear import Linear
from clars.norms.watch.part import Part
from clars.norms.watch.synchronised import scale_and_shift
from clars.norms.watch.measured_call import Call, spread

Lookup = Callable[[Tensor | None], Part | None]


def _layer(find: Lookup, weight: Tensor | None, bias: Tensor | None) -> str:
    return (find(weight) or find(bias)).account.layer


def _need_batch(find: Lookup, weight: Tensor | None, bias: Tensor | None, x: Tensor, at_least: int) -> None:
    if x.dim() < at_least:
        problem = f"got an input of shape {tuple(x.shape)} without a batch dimension. Give it one with x.unsqueeze(0)."
        raise UnsupportedLayerError({_layer(find, weight, bias): problem})


def _need_weight(find: Lookup, weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is None:
        raise UnsupportedLayerError(
            {find(bias).account.layer: "normalises with a bias and no weight, for which there is no rule."}
        )


def _need_several(x: Tensor, values: int) -> None:
    """Refuse what torch's own functions refuse: one value has no variance."""
    if values == 1:
        raise ValueError(f"Expected more than one value per channel in training, got an input of {tuple(x.shape)}.")


def _autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as autocast would, outside of the tap: autograd then casts the gradients back, as it always does."""
    device = x.device.type
    tensors = (x, *others)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(value if value is None or value.dtype == torch.float64 else value.to(dtype) for value in tensors)


def _autocast_to_float32(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as CUDA's autocast does for layer and group normalisation; the CPU's leaves them alone."""
    tensors = (x, *others)
    if x.device.type == "cpu" or not torch.is_autocast_enabled(x.device.type):
        return tensors
    return tuple(value if value is None or value.dtype == torch.float64 else value.float() for value in tensors)


def linear(find: Lookup, input, weight, bias=None):
    _need_batch(find, weight, bias, input, 2)
    if weight.dim() != 2 or (bias is not None and bias.requires_grad and bias.shape != weight.shape[:1]):
        shapes = " and ".join(str(tuple(value.shape)) for value in (weight, bias) if value is not None)
        problem = f"has weight and bias of shapes {shapes}; there is a rule for (P, D) and (P,) only. Give them these."
        raise UnsupportedLayerError({_layer(find, weight, bias): problem})
    parts = find(weight), find(bias)
    return Call(Linear(), *_autocast(input, weight, bias), parts)


def _conv(dimensions: int):
    each = _ntuple(dimensions)

    def conv(find: Lookup, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        _need_batch(find, weight, bias, input, dimensions + 2)
        parts = find(weight), find(bias)
        dilation = each(dilation)
        if isinstance(padding, str):
            input, padding = resolve_padding(input, tuple(weight.shape[2:]), padding, dilation)
        rule = Conv(each(stride), tuple(each(padding)), dilation, groups)
        return Call(rule, *_autocast(input, weight, bias), parts)

    return conv


def batch_norm(
    find: Lookup,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
):
    _need_weight(find, weight, bias)
    if training:
        _need_several(input, input.numel() // input.shape[1])
    rule = BatchNorm(running_mean, running_var, training, 0.0 if momentum is None else momentum, eps)
    return Call(rule, input, weight, bias, (find(weight), find(bias)))


def layer_norm(find: Lookup, input, normalized_shape, weight=None, bias=None, eps=1e-5):
    _need_weight(find, weight, bias)
    _need_batch(find, weight, bias, input, len(normalized_shape) + 1)
    if tuple(weight.shape) != tuple(normalized_shape):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)  # which refuses it
    parts = find(weight), find(bias)
    return Call(LayerNorm(tuple(normalized_shape), eps), *_autocast_to_float32(input, weight, bias), parts)


def group_norm(find: Lookup, input, num_groups, weight=None, bias=None, eps=1e-5):
    _need_weight(find, weight, bias)
    _need_several(input, input.numel() // num_groups)
    parts = find(weight), find(bias)
    return Call(GroupNorm(num_groups, eps), *_autocast_to_float32(input, weight, bias), parts)


def scaled_and_shifted(find: Lookup, y, weight, bias):
    """Scale and shift the channels of what `SyncBatchNorm` has normalised."""
    rows = spread(torch.Size(y.shape[:2]), [weight, bias], [find(weight), find(bias)])
    scale, shift = (row.view(*row.shape, *[1] * (y.dim() - 2)) for row in rows)
    return y * scale + shift


def instance_norm(
    find: Lookup,
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    """Do as torch does, a batch normalisation of B * C channels, with scale and shift spread over the examples."""
    examples, channels = input.shape[:2]
    present = [value for value in (weight, bias) if value is not None]
    rows = spread(torch.Size((examples, channels)), present, [find(value) for value in present])
    columns = [row.reshape(-1) for row in rows]
    means, variances = (None if value is None else value.repeat(examples) for value in (running_mean, running_var))
    normalised = F.batch_norm(
        input.reshape(1, -1, *input.shape[2:]),
        means,
        variances,
        columns.pop(0) if weight is not None else None,
        columns.pop(0) if bias is not None else None,
        use_input_stats,
        momentum,
        eps,
    )
    if use_input_stats and running_mean is not None:
        running_mean.copy_(means.view(examples, channels).mean(0))
        running_var.copy_(variances.view(examples, channels).mean(0))
    return normalised.view(input.shape)


def embedding(
    find: Lookup,
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
):
    _need_batch(find, weight, None, input, 1)
    if scale_grad_by_freq or sparse:
        option = "sparse" if sparse else "scale_grad_by_freq"
        raise UnsupportedLayerError({find(weight).account.layer: f"uses {option}=True, for which there is no rule."})
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    rule = Embedding(-1 if padding_idx is None else padding_idx, max_norm, norm_type)
    return Call(rule, input, weight, None, (find(weight), None))


RULES: dict[Callable, Callable] = {
    F.linear: linear,
    F.conv1d: _conv(1),
    F.conv2d: _conv(2),
    F.conv3d: _conv(3),
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.embedding: embedding,
    scale_and_shift: scaled_and_shifted,
}

# A parameter keeps its norm under these: what comes out is followed like the parameter itself, as long as no element
# is lost or repeated. (Tuples, as older torch.compile cannot look into a set.)
VIEWS = (
    Tensor.reshape,
    torch.reshape,
    Tensor.view,
    Tensor.unsqueeze,
    torch.unsqueeze,
    Tensor.squeeze,
    torch.squeeze,
    Tensor.flatten,
    torch.flatten,
    Tensor.permute,
    torch.permute,
    Tensor.transpose,
    torch.transpose,
    Tensor.t,
    Tensor.contiguous,
    Tensor.to,
    Tensor.float,
    Tensor.type_as,
    Tensor.clone,
    Tensor.__getitem__,
)

# A parameter that enters one of these is broadcast over the examples: it is expanded first, and each example's own
# gradient is seen on the way back.
ELEMENTWISE = (
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    Tensor.add,
    Tensor.sub,
    Tensor.mul,
    Tensor.div,
    Tensor.add_,
    Tensor.sub_,
    Tensor.mul_,
    Tensor.div_,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.__iadd__,
    Tensor.__sub__,
    Tensor.__rsub__,
    Tensor.__isub__,
    Tensor.__mul__,
    Tensor.__rmul__,
    Tensor.__imul__,
    Tensor.__truediv__,
)

EXPANSIONS = (Tensor.expand, Tensor.expand_as, torch.broadcast_to)

# These take only type, device or shape from a second operand.
LOOKS_AT_SECOND = (Tensor.expand_as, Tensor.type_as, Tensor.to, Tensor.view_as, Tensor.reshape_as)
