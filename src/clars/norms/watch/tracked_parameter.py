"""A parameter of a tracked layer, whatever tensor stands for it at present."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from clars.norms.watch.accumulator import Accumulator

if TYPE_CHECKING:
    from clars.norms.watch.repeated_call import RepeatedCall


class TrackedParameter:
    """A parameter of a layer, as it is now: strategies may put another tensor in its place from call to call."""

    __slots__ = ("accumulator", "last_call", "module", "name", "tensor")
    leaf = None  # through which a compiled backward pass would pass its sums on

    def __init__(self, accumulator: Accumulator, module: nn.Module, name: str) -> None:
        self.accumulator, self.module, self.name = accumulator, module, name
        accumulator.parameters.append(self)
        self.tensor: Tensor | None = None
        self.last_call: RepeatedCall | None = None  # of a layer in C++ with it

    @property
    def layer(self) -> str:
        """The name of its layer."""
        return self.accumulator.layer

    def sees(self, rows: int) -> bool:
        """Tell whether an input of so many rows may have the batch as its first dimension."""
        return self.accumulator.current.problem_of(rows) is None

    def present(self) -> Tensor | None:
        """Return the tensor that is in the parameter's place in the module; None where it has no such parameter."""
        return self.module._parameters.get(self.name)

    def gradient_arrives(self) -> bool:
        """Tell, in the midst of a backward pass, whether it adds to the parameter's `.grad`."""
        return arrives(get_gradient_edge(self.tensor).node)


def arrives(node: Node | None) -> bool:
    """Tell, in the midst of a backward pass, whether it reaches the parameter at the end of what begins with `node`.

    `torch.autograd.grad`, and `backward` with `inputs`, leave out or take away what they are not asked for. Between a
    layer and its parameter are at most casts and views.
    """
    while node is not None and node.next_functions:
        node = node.next_functions[0][0]
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch.autograd.grad returns it
        return False
