"""Convolutions of one to three dimensions: stride, dilation, padding, groups, depthwise."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.native import kernels as cpu, triton_products as fused
from clars.norms.estimator import Estimator
from clars.norms.methods.inner_products import gram, gram_squares, inner, window_gram
from clars.norms.methods.sizes import Problem, at_once, chunks
from clars.norms.methods.products import bias_contribution, dense, matrix_products, processors, sum_of_products
from clars.norms.rules.rule import Contribution, Gradients, Measure
from clars.norms.methods.choose import WeightRule, planned, weight_contribution


@dataclass(frozen=True)
class Conv(WeightRule):
    """A convolution of x [B, C, *size] with weight [P, C / groups, *kernel] and zero padding."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x, weight, bias):
        none = (0,) * len(self.stride)
        y = torch.convolution(x, weight, bias, self.stride, self.padding, self.dilation, False, none, self.groups)
        return y, ()

    def compiled(self, x: Tensor, weight: Tensor, estimator: Estimator) -> cpu.Layer | None:
        if any(self.padding) and prod(weight.shape[2:]) == 1:  # no kernel for what such a rarity sees
            return None
        hyper_parameters = (self.stride, self.padding, self.dilation, self.groups)
        return planned(self, "Conv", hyper_parameters, x, weight, estimator)

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        for_input, for_weight, for_bias = needs
        return Gradients(
            self._gradient(gy, x, weight, self.groups, wrt_input=True) if for_input else None,
            self.weight_contribution(gy, x, weight, measure) if for_weight else Contribution(),
            bias_contribution(gy.flatten(2), measure) if for_bias else Contribution(),
        )

    def weight_contribution(self, gy: Tensor, x: Tensor, weight: Tensor, measure: Measure) -> Contribution:
        """Return the weight's gradient and the measured examples' squared norms, by the cheapest exact method."""
        whole = partial(self._gradient, gy, x, weight, self.groups, wrt_input=False)
        return weight_contribution(self, gy, x, weight, whole, measure)

    def problem(self, gy: Tensor, x: Tensor, weight: Tensor) -> Problem:
        """Return the sizes by which a method is chosen."""
        return Problem(
            examples=len(x),
            positions=prod(gy.shape[2:]),
            inputs=prod(weight.shape[1:]),
            outputs=len(weight) // self.groups,
            channels=x.shape[1] // self.groups,
            input_size=tuple(x.shape[2:]),
            channels_last=not x.is_contiguous() and x.movedim(1, -1).is_contiguous(),
            groups=self.groups,
            kernel=tuple(weight.shape[2:]),
            stride=self.stride,
            device=x.device.type,
            dtype=x.dtype,
            threads=processors(),
            kernels=cpu.applies(x, gy),
        )

    def foreseen(self, x: Tensor, weight: Tensor) -> Problem:
        """Return the same for a call that has not been made yet."""
        y, _ = self.forward(x.to("meta"), weight.to("meta"), None)
        return self.problem(y, x, weight)

    def methods(self, problem: Problem) -> dict[str, Callable]:
        """Return the exact methods that apply, by name."""
        found: dict[str, Callable] = {"grouped": self._by_groups}
        if problem.kernels:
            found["each"] = self._by_calls
            if len(problem.kernel) == 2 and self.groups == 1:
                found["direct"] = self._by_tiles
            if len(problem.kernel) == 2 and self.groups > 1 and problem.channels == 1:
                found["direct"] = self._by_taps
        laid_out = self._is_matrix(problem.kernel) or len(problem.kernel) == 2
        if laid_out:
            found["matrix"] = self._by_matrices
        if self.groups == 1 and (laid_out or set(self.stride) == {1}):
            found["gram"] = self._by_gram
        if len(problem.kernel) == 2 and problem.dtype in fused.DTYPES and fused.available(problem.device):
            found["fused"] = self._by_fused_kernel
        return found

    def _gradient(self, gy: Tensor, x: Tensor, weight: Tensor, groups: int, *, wrt_input: bool) -> Tensor:
        mask = (wrt_input, not wrt_input, False)
        none = (0,) * len(self.stride)
        both = torch.ops.aten.convolution_backward.default(
            gy, x, weight, None, self.stride, self.padding, self.dilation, False, none, groups, mask
        )
        return both[0] if wrt_input else both[1]

    def _is_matrix(self, kernel: tuple[int, ...]) -> bool:
        return prod(kernel) == 1 and not any(self.padding)

    def _windows(self, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """Return what the kernel sees at each position of x [b, C, *size], as [b, D, T]."""
        if self._is_matrix(kernel):
            if set(self.stride) != {1}:
                x = x[(..., *(slice(None, None, step) for step in self.stride))]
            return positions_last(x)
        return F.unfold(x, kernel, self.dilation, self.padding, self.stride)

    def _by_matrices(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        """Each example's gradient is a product of matrices, in each group: output gradients by windows of the input."""
        if problem.kernels and self.groups == 1 and self._is_matrix(problem.kernel):
            most = at_once(problem, "matrix", memory)
            return Contribution(*cpu.kernel("pointwise_products")(gy, x, weight, self.stride, most))

        def products(gy: Tensor, x: Tensor) -> Tensor:
            outputs, windows = positions_last(gy), self._windows(x, problem.kernel)
            if self.groups > 1:
                outputs, windows = (
                    each.reshape(len(x) * self.groups, -1, each.shape[2]) for each in (outputs, windows)
                )
            return matrix_products(outputs, windows).view(len(x), *weight.shape)

        return sum_of_products(products, gy, x, chunks(problem, "matrix", memory))

    def _by_calls(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        most = at_once(problem, "each", memory)
        return Contribution(*cpu.kernel("conv_products")(gy, x, weight, *geometry, most))

    def _by_tiles(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        geometry = (problem.kernel, self.stride, self.padding, self.dilation)
        most = at_once(problem, "direct", memory)
        return Contribution(*cpu.kernel("small_conv_products")(gy, x, *geometry, most))

    def _by_taps(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        geometry = (problem.kernel, self.stride, self.padding, self.dilation)
        most = at_once(problem, "direct", memory)
        return Contribution(*cpu.kernel("depthwise_products")(gy, x, *geometry, most))

    def _by_groups(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        """The gradients of b examples by one call: one example with b times the groups.

        Each example's channels then meet only its own output gradient.
        """

        def products(gy: Tensor, x: Tensor) -> Tensor:
            if len(x) == 1:
                return self._gradient(gy, x, weight, self.groups, wrt_input=False).unsqueeze(0)
            shape_only = weight.new_empty(()).expand(len(x) * len(weight), *weight.shape[1:])
            one_gy, one_x = (value.reshape(1, -1, *value.shape[2:]) for value in (gy, x))
            stacked = self._gradient(one_gy, one_x, shape_only, len(x) * self.groups, wrt_input=False)
            return stacked.view(len(x), *weight.shape)

        return sum_of_products(products, gy, x, chunks(problem, "grouped", memory))

    def _by_gram(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        squares = []
        most = at_once(problem, "gram", memory)
        laid_out = self._is_matrix(problem.kernel) or set(self.stride) != {1}
        if problem.kernels and self._is_matrix(problem.kernel):
            operands = positions_last(gy), dense(self._windows(x, problem.kernel))
            return Contribution(None, cpu.kernel("gram_squares")(*operands, most))
        if problem.kernels and len(problem.kernel) == 2:
            geometry = (problem.kernel, self.stride, self.padding, self.dilation)
            return Contribution(None, cpu.kernel("window_gram_squares")(gy, x, *geometry, most))
        for piece in chunks(problem, "gram", memory):
            outputs = positions_last(gy[piece])
            if laid_out:
                squares.append(gram_squares(outputs, self._windows(x[piece], problem.kernel)))
            else:
                windows = window_gram(x[piece], problem.kernel, self.padding, self.dilation, gy.shape[2:])
                squares.append(inner(gram(outputs), windows))
        return Contribution(None, torch.cat(squares))

    def _by_fused_kernel(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        return Contribution(
            *fused.fused_products(gy, x, problem.kernel, self.stride, self.padding, self.dilation, self.groups)
        )


def positions_last(x: Tensor) -> Tensor:
    """Return x [b, C, *size] as [b, C, T], without a copy where channels lie together in memory too."""
    channels_last = x.movedim(1, -1)
    if channels_last.is_contiguous() and not x.is_contiguous():
        return channels_last.flatten(1, -2).mT
    return x.flatten(2)


def resolve_padding(
    x: Tensor, kernel: tuple[int, ...], padding: str, dilation: tuple[int, ...]
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn 'valid' and 'same' into numbers; where 'same' is uneven, pad x by the excess on the far side first."""
    if padding == "valid":
        return x, (0,) * len(kernel)
    total = [step * (size - 1) for step, size in zip(dilation, kernel)]
    excess = [amount % 2 for amount in total]
    if any(excess):
        x = F.pad(x, [side for amount in reversed(excess) for side in (0, amount)])
    return x, tuple(amount // 2 for amount in total)
