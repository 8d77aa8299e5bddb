"""What the backward pass of a layer says of one parameter."""

from typing import NamedTuple

from torch import Tensor


class Contribution(NamedTuple):
    """One parameter's gradient and the squared norms [b] of what the measured examples, or groups, contribute to it.

    The contribution of example i is the part of the gradient that flows through row i of the layer's output
    gradient. The contributions sum to the gradient, also where examples share batch statistics.
    """

    gradient: Tensor | None = None
    squares: Tensor | None = None
