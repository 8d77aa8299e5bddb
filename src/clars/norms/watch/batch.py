"""What is known of the batch before the model runs: from its inputs, and from the user."""

import inspect
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from clars.errors import UserError, nearest
from clars.layers import matches
from clars.norms.owners import PLAIN, Labels, Unknown
from clars.norms.owners.tensors import tensors_in


class Batch:
    """Which inputs are the batch, and in how many views; what the user says of rows.

    Args:
        name: of the argument whose dimension 0 is the batch; None for the first tensor.
        views: of each example that a call's batch holds, one after the other.
        rows: where the examples are in the input of layers, by patterns of their names (see `owners.read`).
        layers: the names of all layers.

    Raises:
        ValueError: views below 1, or a pattern that no layer's name fits.
    """

    def __init__(self, name: str | None, views: int, rows: Mapping[str, str], layers: Sequence[str]) -> None:
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise ValueError(f"views={views!r} is not a number of views: use a whole number above 0.")
        for pattern in rows:
            if not any(matches(layer, pattern) for layer in layers):
                raise ValueError(f"rows: no tracked layer's name fits {pattern!r}.{nearest(pattern, layers)}")
        self.name, self.views, self.rows = name, views, dict(rows)

    def word(self, layer: str) -> str | None:
        """Return what the user says of the rows of a layer's input."""
        return next((words for pattern, words in self.rows.items() if matches(layer, pattern)), None)

    def examples(self, module: nn.Module, outermost: bool, args: tuple, kwargs: dict) -> int | None:
        """Return how many examples a module is called with; None where its inputs do not tell.

        Raises:
            UserError: there is no such argument, or the number of views does not divide the number of rows.
        """
        inputs = (*args, *kwargs.values())
        if self.name is not None and outermost:
            inputs = (self._argument(module, args, kwargs),)
        sizes = [tensor.shape[0] for tensor in tensors_in(inputs) if tensor.dim()]
        if not sizes:
            return None
        if sizes[0] % self.views:
            raise UserError(f"views={self.views} does not divide a batch of {sizes[0]} rows.")
        return sizes[0] // self.views

    def labels(self, inputs: Iterable[Tensor], examples: int) -> Labels:
        """Return the labels of what a module is called with: the batch, or what has another first dimension."""
        labels = Labels(examples)
        for x in inputs:
            whole = len(x) == examples * self.views
            labels.put(x, PLAIN._replace(outer=self.views) if whole else Unknown.STRAY)
        return labels

    def _argument(self, module: nn.Module, args: tuple, kwargs: dict):
        try:
            return inspect.signature(module.forward).bind(*args, **kwargs).arguments[self.name]
        except (KeyError, TypeError):
            raise UserError(f"batch={self.name!r} is no argument that the model was called with.") from None
