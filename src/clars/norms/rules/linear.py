"""Linear layers with any number of positions between the batch and the feature dimension."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.native import kernels as cpu
from clars.norms.estimator import Estimator
from clars.norms.methods.inner_products import gram_squares
from clars.norms.methods.sizes import Problem, at_once, chunks
from clars.norms.methods.products import bias_contribution, dense, matrix_products, processors, sum_of_products
from clars.norms.rules.rule import Contribution, Gradients, Measure
from clars.norms.methods.choose import WeightRule, planned, weight_contribution


@dataclass(frozen=True)
class Linear(WeightRule):
    """y = x W^T + b for x [B, ..., D], W [P, D], b [P]."""

    def forward(self, x, weight, bias):
        return F.linear(x, weight, bias), ()

    def compiled(self, x: Tensor, weight: Tensor, estimator: Estimator) -> cpu.Layer | None:
        return planned(self, "Linear", (), x, weight, estimator)

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs, measure: Measure) -> Gradients:
        for_input, for_weight, for_bias = needs
        by_feature = _by_feature(gy), _by_feature(x)
        return Gradients(
            gy @ weight if for_input else None,
            self.weight_contribution(*by_feature, weight, measure) if for_weight else Contribution(),
            bias_contribution(by_feature[0], measure) if for_bias else Contribution(),
        )

    def weight_contribution(self, gy: Tensor, x: Tensor, weight: Tensor, measure: Measure) -> Contribution:
        """Return gradient and squared norms for output gradients gy [B, P, T] and inputs x [B, D, T]."""
        return weight_contribution(self, gy, x, weight, partial(self._gradient, gy, x), measure)

    def problem(self, gy: Tensor, x: Tensor, weight: Tensor) -> Problem:
        """Return the sizes by which a method is chosen."""
        (examples, inputs, positions), outputs = x.shape, gy.shape[1]
        return Problem(
            examples=examples,
            positions=positions,
            inputs=inputs,
            outputs=outputs,
            channels=inputs,
            input_size=(positions,),
            device=x.device.type,
            dtype=x.dtype,
            threads=processors(),
            kernels=cpu.applies(x, gy),
        )

    def foreseen(self, x: Tensor, weight: Tensor) -> Problem:
        """Return the same for a call that has not been made yet."""
        y, _ = self.forward(x.to("meta"), weight.to("meta"), None)
        return self.problem(_by_feature(y), _by_feature(x), weight)

    def methods(self, problem: Problem) -> dict[str, Callable]:
        """Return the exact methods that apply, by name."""
        if problem.positions == 1:
            return {"gram": self._by_gram}
        return {"matrix": self._by_matrices, "gram": self._by_gram}

    def _by_matrices(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        if problem.kernels:
            most = at_once(problem, "matrix", memory)
            return Contribution(*cpu.kernel("matrix_products")(gy, dense(x), most))
        return sum_of_products(matrix_products, gy, x, chunks(problem, "matrix", memory))

    def _by_gram(self, gy, x, weight, problem: Problem, memory) -> Contribution:
        if problem.kernels:
            most = at_once(problem, "gram", memory)
            return Contribution(None, cpu.kernel("gram_squares")(gy, dense(x), most))
        squares = [gram_squares(gy[piece], x[piece]) for piece in chunks(problem, "gram", memory)]
        return Contribution(None, torch.cat(squares))

    @staticmethod
    def _gradient(gy: Tensor, x: Tensor) -> Tensor:
        return gy.mT.flatten(0, 1).T @ x.mT.flatten(0, 1)


def _by_feature(x: Tensor) -> Tensor:
    """Return x [B, ..., N] as [B, N, T], the form of convolutions."""
    return x.reshape(len(x), -1, x.shape[-1]).mT
