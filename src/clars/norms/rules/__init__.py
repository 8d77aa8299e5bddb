"""The kinds of layer, a file each: what a call of theirs computes, its backward pass, and the norms in it.

A kind is recognised by the function of torch that its forward calls with its parameters, and not by its class: a
subclass that pads first, activates afterwards or permutes around the call is covered, and one that does something else
with its parameters is not mistaken for its parent. An entry of CALLS has the signature of the function that it stands
for, after what tells which tensors are tracked parameters.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.nn import functional as F

from clars.norms.rules import (
    bilinear,
    convolution,
    embedding,
    embedding_bag,
    linear,
    matmul,
    normalisation,
    synchronised,
    transposed,
)

KINDS = (
    linear,
    matmul,
    bilinear,
    convolution,
    transposed,
    normalisation,
    embedding,
    embedding_bag,
    synchronised,
)
CALLS: dict[Callable, Callable] = {function: call for kind in KINDS for function, call in kind.CALLS.items()}
# Functions whose input may have the batch in another dimension than the first.
SEQUENCES = {F.layer_norm, *linear.CALLS, *matmul.CALLS, *bilinear.CALLS, *embedding.CALLS}
INPUTS = {**matmul.INPUTS, **bilinear.INPUTS}  # the place and name of the activations, where not the first argument's


def input_of(function: Callable, args: Sequence, kwargs: Mapping) -> Tensor | None:
    """Return what a function is applied to: the activations, where it is a layer's."""
    position, name = INPUTS.get(function, (0, "input"))
    return args[position] if len(args) > position else kwargs.get(name)
