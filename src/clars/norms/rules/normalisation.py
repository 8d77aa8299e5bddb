"""Normalisations: a scale and a shift per channel, after statistics over a batch, a group or the features."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from clars import native
from clars.errors import UnsupportedLayerError
from clars.native import device, where
from clars.norms.methods.chooser import Chooser, Cut
from clars.norms.methods.groups import summed
from clars.norms.methods.planned import KernelPlan, planned
from clars.norms.rules.channel_sums import channel_sums, position_sums
from clars.norms.rules.rule import Contribution, Find, Gradients, LayerCall, Measure, Rule, need_batch
from clars.precision import wide

aten = torch.ops.aten


def _by_channel(x: Tensor) -> Tensor:
    """Return x [b, C, ...] as [b, C, T]."""
    return x.reshape(*x.shape[:2], -1)


def _batch_normalised(x: Tensor, weight: Tensor, bias: Tensor | None, *how) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and the statistics of x if it was normalised by these, as torch forms them."""
    if where.has_batch_norm_libraries(x):
        return torch._batch_norm_impl_index(x, weight, bias, *how, torch.backends.cudnn.enabled)[:3]
    return aten.native_batch_norm(x, weight, bias, *how)


@dataclass(frozen=True, eq=False)
class BatchNorm(Rule):
    """Batch normalisation of x [B, C, ...] in training or evaluation mode.

    In training mode every example enters every other's statistics, so no example has a loss of its own. What is
    measured is each example's contribution to the gradient of scale and shift with the batch statistics as they are:
    the contributions sum to the gradient.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float

    def forward(self, x, weight, bias):
        running = (self.running_mean, self.running_var)
        y, mean, rstd = _batch_normalised(x, weight, bias, *running, self.training, self.momentum, self.eps)
        if not self.training:  # the running statistics may move on before the backward pass
            variance = self.running_var.to(wide(self.running_var.dtype))
            mean, rstd = self.running_mean.clone(), (variance + self.eps).rsqrt()
        return y, (mean, rstd, None if self.training else self.running_var.clone())

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> native.NativeLayer | None:
        running = (self.running_mean, self.running_var)
        if where.accelerated(x) and native.loaded():
            plan = KernelPlan(device.batch_norm_backward, (self.training,), cut.group)
            how = (*running, self.training, self.momentum, self.eps)
            return planned("AcceleratedBatchNorm", plan, x, weight, cut.group, how)
        if self.training and native.applies(x, weight) and x.is_contiguous():
            return native.NativeLayer("BatchNorm", x, weight, cut.group, *running, self.momentum, self.eps)
        return None

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        mean, rstd, variance = saved
        if where.accelerated(x):
            found = device.batch_norm_backward(gy, x, mean, rstd, weight, self.training, *_wanted(x, needs, measure))
            return _from_kernels(found, weight, needs)
        batch, running = ((mean, rstd), (None, None)) if self.training else ((None, None), (mean, variance))
        gx, gw, gb = aten.native_batch_norm_backward(gy, x, weight, *running, *batch, self.training, self.eps, needs)
        sums = None
        if measure is not None:
            sums = self._sums(gy[measure.rows], x[measure.rows], mean, rstd, measure.memory)
        return _gradients(gx, gw, gb, sums, needs, measure)

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        return summed(self._sums(gy[rows], x[rows], *saved[:2], None)[which], group)

    @staticmethod
    def _sums(gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, memory: int | None) -> tuple[Tensor, Tensor]:
        by_channel = (*x.shape[:2], -1)
        statistics = (mean.view(1, -1, 1), rstd.view(1, -1, 1))
        return channel_sums(gy.reshape(by_channel), x.reshape(by_channel), *statistics, memory)


@dataclass(frozen=True)
class LayerNorm(Rule):
    """Layer normalisation of x [B, ..., *shape] over its last dimensions."""

    shape: tuple[int, ...]
    eps: float

    def forward(self, x, weight, bias):
        y, mean, rstd = aten.native_layer_norm(x, self.shape, weight, bias, self.eps)
        return y, (mean, rstd)

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> native.NativeLayer | None:
        if where.accelerated(x) and native.loaded():
            plan = KernelPlan(self._by_kernels, (), cut.group)
            return planned("AcceleratedLayerNorm", plan, x, weight, cut.group, (self.eps,))
        if native.applies(x, weight):
            return native.NativeLayer("LayerNorm", x, weight, cut.group, self.eps)
        return None

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        mean, rstd = saved
        by_position = (len(x), -1, prod(self.shape))
        if where.accelerated(x):
            return _from_kernels(self._by_kernels(gy, x, *saved, weight, *_wanted(x, needs, measure)), weight, needs)
        x, gy = x.contiguous(), gy.contiguous()
        gx, gw, gb = aten.native_layer_norm_backward(gy, x, self.shape, mean, rstd, weight, weight, needs)
        pieces = (gy.reshape(by_position), x.reshape(by_position), *(v.reshape(len(x), -1, 1) for v in saved))
        sums = None
        if measure is not None:
            sums = position_sums(*(value[measure.rows] for value in pieces), 1, measure.memory)
        return _gradients(gx, gw, gb, sums, needs, measure)

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        by_position = (rows.stop - rows.start, -1, prod(self.shape))
        statistics = (value[rows].reshape(*by_position[:2], 1) for value in saved)
        sums = position_sums(gy[rows].reshape(by_position), x[rows].reshape(by_position), *statistics, 1, None)
        return summed(sums[which], group).view(-1, *weight.shape)

    def leading(self, x: Tensor) -> int:
        return x.dim() - len(self.shape)

    def _by_kernels(self, gy, x, mean, rstd, weight, needs_input, first, last, group) -> tuple[Tensor, ...]:
        by_position, rows = (len(x), -1, prod(self.shape)), (len(x), -1)
        both, statistics = (gy.reshape(by_position), x.reshape(by_position)), (mean.reshape(rows), rstd.reshape(rows))
        found = device.layer_norm_backward(*both, *statistics, weight.reshape(-1), needs_input, first, last, group)
        gx, gw, gb, *squares = found
        return gx.view(x.shape) if needs_input else gx, gw.view(self.shape), gb.view(self.shape), *squares


@dataclass(frozen=True)
class GroupNorm(Rule):
    """Group normalisation of x [B, C, ...] over `groups` groups of channels."""

    groups: int
    eps: float

    def forward(self, x, weight, bias):
        examples, channels = x.shape[:2]
        size = x.numel() // (examples * channels)
        y, mean, rstd = aten.native_group_norm(
            x.contiguous(), weight, bias, examples, channels, size, self.groups, self.eps
        )
        return y, (mean, rstd)

    def native_layer(self, x: Tensor, weight: Tensor, chooser: Chooser, cut: Cut) -> native.NativeLayer | None:
        if where.accelerated(x) and native.loaded():
            plan = KernelPlan(device.group_norm_backward, (self.groups,), cut.group)
            return planned("AcceleratedGroupNorm", plan, x, weight, cut.group, (self.groups, self.eps))
        if native.applies(x, weight) and x.is_contiguous():
            return native.NativeLayer("GroupNorm", x, weight, cut.group, self.groups, self.eps)
        return None

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        mean, rstd = saved
        if where.accelerated(x):
            found = device.group_norm_backward(gy, x, mean, rstd, weight, self.groups, *_wanted(x, needs, measure))
            return _from_kernels(found, weight, needs)
        x, gy = x.contiguous(), gy.contiguous()
        examples, channels = x.shape[:2]
        size = x.numel() // (examples * channels)
        gx, gw, gb = aten.native_group_norm_backward(
            gy, x, mean, rstd, weight, examples, channels, size, self.groups, needs
        )
        sums = None if measure is None else self._sums(gy, x, saved, measure.rows, measure.memory)
        return _gradients(gx, gw, gb, sums, needs, measure)

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        return summed(self._sums(gy, x, saved, rows, None)[which], group)

    def _sums(self, gy: Tensor, x: Tensor, saved, rows: slice, memory: int | None) -> tuple[Tensor, Tensor]:
        channels = x.shape[1]
        per_channel = [value[rows].repeat_interleave(channels // self.groups, 1).unsqueeze(2) for value in saved]
        return channel_sums(_by_channel(gy[rows]), _by_channel(x[rows]), *per_channel, memory)


@dataclass(frozen=True)
class InstanceNorm(Rule):
    """Instance normalisation of x [B, C, ...] by its own statistics, on accelerators."""

    eps: float

    def forward(self, x, weight, bias):
        examples, channels = x.shape[:2]
        one = x.reshape(1, examples * channels, *x.shape[2:])
        scale, shift = (None if value is None else value.repeat(examples) for value in (weight, bias))
        y, mean, rstd = _batch_normalised(one, scale, shift, None, None, True, 0.0, self.eps)
        return y.view(x.shape), (mean.view(examples, channels), rstd.view(examples, channels))

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        wanted = _wanted(x, needs, measure)
        return _from_kernels(device.group_norm_backward(gy, x, *saved, weight, x.shape[1], *wanted), weight, needs)

    def contributions(self, gy, x, weight, saved, rows: slice, group: int, which: int) -> Tensor:
        statistics = (value[rows].unsqueeze(2) for value in saved)
        return summed(channel_sums(_by_channel(gy[rows]), _by_channel(x[rows]), *statistics, None)[which], group)


def _wanted(x: Tensor, needs: tuple[bool, bool, bool], measure: Measure | None) -> tuple[bool, int, int, int]:
    """Return what the kernels are told: whether the input's gradient is wanted, the measured examples, their groups."""
    if measure is None:
        return needs[0], 0, len(x), 1
    first, last, _ = measure.rows.indices(len(x))
    return needs[0], first, last, measure.group


def _from_kernels(found: Sequence[Tensor], weight: Tensor, needs: tuple[bool, bool, bool]) -> Gradients:
    gx, gw, gb, scale, shift = found
    own = gw.to(weight.dtype), gb.to(weight.dtype)
    return Gradients(
        gx if needs[0] else None,
        Contribution(own[0], scale) if needs[1] else Contribution(),
        Contribution(own[1], shift) if needs[2] else Contribution(),
    )


def _gradients(gx, gw, gb, sums: tuple[Tensor, Tensor] | None, needs, measure: Measure | None) -> Gradients:
    scale, shift = (None, None) if sums is None else map(measure.squared, sums)
    return Gradients(
        gx if needs[0] else None,
        Contribution(gw, scale) if needs[1] else Contribution(),
        Contribution(gb, shift) if needs[2] else Contribution(),
    )


def _need_weight(find: Find, weight: Tensor | None, bias: Tensor | None) -> None:
    if weight is None:
        raise UnsupportedLayerError(
            {find(bias).layer: "normalises with a bias and no weight, for which there is no rule."}
        )


def _need_several(x: Tensor, values: int) -> None:
    """Refuse what torch's own functions refuse: one value has no variance."""
    if values == 1:
        raise ValueError(f"Expected more than one value per channel in training, got an input of {tuple(x.shape)}.")


def batch_norm(
    find: Find,
    input,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> LayerCall:
    """Stand for torch.nn.functional.batch_norm: input [B, C, ...], weight and bias [C]."""
    _need_weight(find, weight, bias)
    if training:
        _need_several(input, input.numel() // input.shape[1])
    rule = BatchNorm(running_mean, running_var, training, 0.0 if momentum is None else momentum, eps)
    return LayerCall(rule, input, weight, bias, (find(weight), find(bias)))


def layer_norm(find: Find, input, normalized_shape, weight=None, bias=None, eps=1e-5) -> LayerCall | Tensor:
    """Stand for torch.nn.functional.layer_norm: input [B, ..., *normalized_shape], weight and bias of that shape."""
    _need_weight(find, weight, bias)
    need_batch(find, weight, bias, input, len(normalized_shape) + 1)
    if tuple(weight.shape) != tuple(normalized_shape):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)  # which refuses it
    parameters = find(weight), find(bias)
    rule = LayerNorm(tuple(normalized_shape), eps)
    return LayerCall(rule, input, weight, bias, parameters, where.cast_to_float32)


def group_norm(find: Find, input, num_groups, weight=None, bias=None, eps=1e-5) -> LayerCall:
    """Stand for torch.nn.functional.group_norm: input [B, C, ...], weight and bias [C]."""
    _need_weight(find, weight, bias)
    _need_several(input, input.numel() // num_groups)
    parameters = find(weight), find(bias)
    return LayerCall(GroupNorm(num_groups, eps), input, weight, bias, parameters, where.cast_to_float32)


def instance_norm(
    find: Find,
    input,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
) -> LayerCall | Tensor:
    """Stand for torch.nn.functional.instance_norm: input [B, C, ...], weight and bias [C].

    As torch does it, a batch normalisation of B * C channels, with scale and shift expanded over the examples.
    """
    if use_input_stats and running_mean is None and weight is not None and where.accelerated(input):
        _need_several(input, input[0, 0].numel())
        return LayerCall(InstanceNorm(eps), input, weight, bias, (find(weight), find(bias)))
    examples, channels = input.shape[:2]
    present = [value for value in (weight, bias) if value is not None]
    rows = find.expand(torch.Size((examples, channels)), present)
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


CALLS = {
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
}
