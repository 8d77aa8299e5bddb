"""The kinds of layer, a file each: what a call of theirs computes, its backward pass, and the norms in it.

A kind is recognised by the function of torch that its forward calls with its parameters, and not by its class: a
subclass that pads first, activates afterwards or permutes around the call is covered, and one that does something else
with its parameters is not mistaken for its parent. An entry of CALLS has the signature of the function that it stands
for, after what tells which tensors are tracked parameters.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from clars.norms.rules import convolution, embedding, linear, matmul, normalisation, synchronised, transposed

KINDS = (linear, matmul, convolution, transposed, normalisation, embedding, synchronised)
CALLS: dict[Callable, Callable] = {function: call for kind in KINDS for function, call in kind.CALLS.items()}


def input_of(function: Callable, args: Sequence, kwargs: Mapping) -> Tensor | None:
    """Return what a function is applied to, the activations of a layer if it is one: its first argument but for few."""
    position, name = matmul.INPUTS.get(function, (0, "input"))
    return args[position] if len(args) > position else kwargs.get(name)
