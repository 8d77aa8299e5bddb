"""Whether the model still uses what the optimizer trains."""

from collections.abc import Sequence

from torch import nn

from clars.errors import UserError
from clars.layers import Layer


class Presence:
    """Looks at each step whether the layers' modules and parameters are still those of the model.

    Args:
        model: the model.
        layers: what is trained.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self.model, self.layers = model, layers
        self._reached_by = self._ways()

    def require(self) -> None:
        """Refuse to train what the model no longer uses.

        Raises:
            UserError: a parameter was replaced, or a module is no part of the model any more.
        """
        for layer in self.layers:
            for name, parameter in layer.parameters.items():
                if layer.module._parameters.get(name) is not parameter:
                    raise UserError(
                        f"Parameter {name!r} of layer {layer.name!r} was replaced or sharded after the optimizer was "
                        "made, so the step would train a tensor that the model no longer uses. Make the optimizer "
                        "after the change to the model."
                    )
        if any(parent._modules.get(name) is not child for parent, name, child in self._reached_by):
            self._require_modules()

    def _require_modules(self) -> None:
        """Refuse layers whose modules were taken out of the model; one that was wrapped is still there."""
        present = set(self.model.modules())
        gone = [layer.name for layer in self.layers if layer.module not in present]
        if gone:
            raise UserError(
                f"The module of layer {gone[0]!r} is no part of the model any more; what has taken its place would not "
                "be trained. Make the optimizer after the change to the model."
            )
        self._reached_by = self._ways()

    def _ways(self) -> list[tuple[nn.Module, str, nn.Module]]:
        """Return each step (parent, name, child) on the ways from the model to the layers' modules."""
        wanted = {layer.module for layer in self.layers}
        return [
            (parent, name, child)
            for parent in self.model.modules()
            for name, child in parent._modules.items()
            if child is not None and not wanted.isdisjoint(child.modules())
        ]
