"""What an optimizer tells about a layer's last step."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from clars.errors import UserError
from clars.norms.noise import estimates

SMALLEST = 1e-15  # of a gradient's norm: examples' shares of it can still be squared


class LayerStats(NamedTuple):
    """One layer at the last step. Norms are of weights, and of gradients in the gradient's own unit.

    variance_factor is M_k = mean_i ||grad f_i||^2 / ||g||^2, estimated where groups of examples were measured.
    noise_scale is tr(Sigma) / ||G||^2 from unbiased estimates of both (see `clars.norms.noise.estimates`), in examples;
    it is infinite where the estimate of ||G||^2 is not positive. What needs per-example norms is None where none were
    formed, or all examples are one group.
    """

    weight_norm: float
    gradient_norm: float
    ratio: float
    example_norm_sum: float | None = None
    variance_factor: float | None = None
    noise_scale: float | None = None

    @property
    def unmeasured(self) -> bool:
        """Tell whether S_k is below ||g_k|| by more than rounding, which the triangle inequality forbids.

        Not told of a network that has died: there the squares of the examples' norms are below what float32 can hold.
        """
        alive = self.gradient_norm > SMALLEST
        return alive and self.example_norm_sum is not None and self.example_norm_sum < 0.98 * self.gradient_norm

    @classmethod
    def of(cls, weight: float, gradient: float, ratio: float, total: list[float] | None) -> "LayerStats":
        """Form the statistics from norms and the layer's totals (see `clars.ExampleNorms.totals`)."""
        if total is None or not total[2]:
            return cls(weight, gradient, ratio)
        sum_of_norms, sum_of_squares, examples, group_squares = total
        square, noise, example_square = gradient**2, None, None
        if examples**2 - group_squares > 1e-6 * examples**2:  # not all of them are one group
            trace, true_square = estimates(square, sum_of_squares, examples, group_squares)
            noise = trace / true_square if true_square > 0 else float("inf")
            example_square = trace + true_square
        if group_squares == examples:
            example_square = examples * sum_of_squares  # no estimate: contributions carry the factor 1/B
        factor = None if example_square is None else example_square / square if square else float("inf")
        return cls(weight, gradient, ratio, sum_of_norms, factor, noise)


class LastStep(NamedTuple):
    """What a step left on the device, vectors over the K layers; `active` are the indices of those with a gradient.

    `totals` [K, 4] are those of the examples (see `clars.ExampleNorms.totals`); None where none were formed.
    """

    active: list[int]
    weight_norms: Tensor
    gradient_norms: Tensor
    ratios: Tensor
    totals: Tensor | None

    def by_layer(self, names: Sequence[str], exact: bool) -> dict[str, LayerStats]:
        """Read the statistics from the device.

        Args:
            names: of the K layers.
            exact: whether every example was measured.

        Warns:
            UserWarning: a layer's S_k is below ||g_k||, so that a part of its gradient was not measured.
        """
        rows = list(zip(*(vector.tolist() for vector in self[1:4])))
        per_example = self.totals.tolist() if self.totals is not None else [None] * len(names)
        stats = {names[k]: LayerStats.of(*rows[k], per_example[k]) for k in self.active}
        short = [name for name, row in stats.items() if row.unmeasured and exact]
        if short:
            warnings.warn(
                f"A part of the gradient of {', '.join(short[:3])} did not come through the layer's own forward (a "
                "penalty in the loss?), so its per-example norms are too small; the ratio is that of LARS there.",
                stacklevel=3,
            )
        return stats


def required(last: LastStep | None) -> LastStep:
    """Return the last step.

    Raises:
        UserError: there was none.
    """
    if last is None:
        raise UserError("layer_stats() before the first step: there is nothing to tell yet.")
    return last
