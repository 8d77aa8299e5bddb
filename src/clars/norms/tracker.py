"""Installs the tracking of per-example gradient norms in a model, and reads it out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import Layer, layers
from clars.norms.account import Account, BackwardPass
from clars.norms.intercept import TrackedForward


class ExampleNorms:
    """S_k = sum over examples i of ||c_{i,k}||, for every layer k, formed in the model's own backward pass.

    c_{i,k} is the contribution of example i (row i of dimension 0 of the layer's input) to the gradient of layer k:
    the part of it that flows through row i of the layer's output gradient. The contributions sum to the gradient. In
    a model without cross-example layers and with a loss averaged over B examples, c_{i,k} = grad_k f_i / B, so S_k is
    the mean of the per-example gradient norms. Under batch statistics the examples have no losses of their own; the
    contribution is what stays defined.

    S_k has the unit of the gradient: loss reduction, accumulation over micro-batches and loss scaling scale both
    alike. The model computes the same values as before; neither `state_dict` nor `parameters` show the tracking. A
    model has one tracker: a later one takes the place of an earlier one, which then refuses to be read.

    Args:
        model: the model; move it and wrap it as you like afterwards.
        estimator: "exact" forms the norm of every example.
        layers: the layers to track; by default all of `clars.layers(model)`.

    Raises:
        ValueError: unknown estimator.
        UnsupportedLayerError: one parameter belongs to several modules; and, at the first forward or backward pass
            that shows it, a parameter used in a function without a rule or more than once.
    """

    def __init__(self, model: nn.Module, estimator: str = "exact", *, layers: Sequence[Layer] | None = None) -> None:
        if estimator != "exact":
            raise ValueError(f"estimator={estimator!r} is not known: use 'exact'.")
        self.model = model
        self.layers = list(layers) if layers is not None else _default(model)
        _refuse_shared(model, self.layers)
        current = BackwardPass()
        self._accounts = {layer.name: Account(layer.name, current) for layer in self.layers}
        self.replaced = False
        self._forwards = self._install()

    def _install(self) -> list[TrackedForward]:
        by_module: dict[nn.Module, dict[str, Account]] = {}
        for layer in self.layers:
            own = by_module.setdefault(layer.module, {})
            own.update(dict.fromkeys(layer.parameters, self._accounts[layer.name]))
        for module in by_module:
            present = module.__dict__.get("forward")
            if isinstance(present, TrackedForward):
                present.tracker.remove()
                present.tracker.replaced = True
        forwards = [TrackedForward(module, accounts, self) for module, accounts in by_module.items()]
        for forward in forwards:
            forward.module.forward = forward
        return forwards

    def totals(self) -> dict[str, Tensor]:
        """Return, for each layer that a backward pass reached since the last reset, a tensor [3]:

        sum of norms, sum of squared norms, number of examples.

        Raises:
            ValueError: a later tracker took this one's place in the model.
        """
        if self.replaced:
            raise UserError(
                "A later ExampleNorms, or a later CLARS, tracks this model; this one sees nothing any more. Keep one, "
                "and give it to the optimizer as norms=."
            )
        return {name: account.total for name, account in self._accounts.items() if account.total is not None}

    def sums(self) -> dict[str, Tensor]:
        """Return S_k, a scalar tensor in the unit of the gradient, per layer name since the last reset.

        A layer that no backward pass reached has the sum zero.

        Raises:
            ValueError: as for `totals`.
        """
        totals = self.totals()
        return {name: totals[name][0].clone() if name in totals else torch.zeros(()) for name in self._accounts}

    def reset(self) -> None:
        """Forget the sums; the next backward pass starts anew."""
        for account in self._accounts.values():
            account.reset()

    def remove(self) -> None:
        """Give every module its own forward back. A wrapper put around ours meanwhile stays, and passes through."""
        for tracked in self._forwards:
            tracked.active = False
            if tracked.module.__dict__.get("forward") is tracked:
                del tracked.module.forward
                if tracked.previous is not None:
                    tracked.module.forward = tracked.previous
        self._forwards = []


_default = layers  # the class's own argument has the name of the function


def _refuse_shared(model: nn.Module, tracked: Sequence[Layer]) -> None:
    """Refuse a parameter with two names: its uses would have to be summed before the norm."""
    owners: dict[int, str] = {}
    wanted = {id(parameter): layer.name for layer in tracked for parameter in layer.parameters.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in owners and id(parameter) in wanted:
            raise UnsupportedLayerError(
                f"has one parameter under the names {owners[id(parameter)]!r} and {name!r}: each example's "
                "contributions through both must be summed before the norm is taken, for which there is no rule. "
                "Untie the weights.",
                wanted[id(parameter)],
            )
        owners[id(parameter)] = name
