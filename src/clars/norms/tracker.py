"""Installs the tracking of per-example gradient norms in a model, and reads it out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import Layer, layers
from clars.norms.account import Account, BackwardPass
from clars.norms.intercept import Part, install, tensors_in, tracker_of, uninstall


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
        model: the model; move it and wrap it as you like afterwards. Dimension 0 of its input is the batch.
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
        self.active, self.replaced = True, False
        self._pass = BackwardPass()
        self._accounts = {layer.name: Account(layer, self._pass) for layer in self.layers}
        self._names: dict[nn.Module, dict[str, Account]] = {model: {}}
        for layer in self.layers:
            own = self._names.setdefault(layer.module, {})
            own.update(dict.fromkeys(layer.parameters, self._accounts[layer.name]))
        self._install()

    def _install(self) -> None:
        for module in self._names:
            earlier = tracker_of(module)
            if earlier is not None and earlier is not self:
                earlier.remove()
                earlier.replaced = True
            install(module, self)

    def parts(self, module: nn.Module) -> dict[int, Part]:
        """Return the tracked parameters of a module that require a gradient now, by id."""
        present = ((getattr(module, name), name, account) for name, account in self._names[module].items())
        return {id(value): Part(account, name) for value, name, account in present if value.requires_grad}

    def parts_elsewhere(self) -> dict[int, Part]:
        """Return the tracked parameters of all modules below the model itself, by id."""
        inner = (self.parts(module) for module in self._names if module is not self.model)
        return {key: part for parts in inner for key, part in parts.items()}

    @contextmanager
    def batch_of(self, inputs: Iterable) -> Iterator[None]:
        """While the model's own forward runs, every layer must see as many rows as one of the model's inputs has."""
        before = self._pass.batch_sizes
        self._pass.batch_sizes = tuple(len(tensor) for tensor in tensors_in(inputs) if tensor.dim())
        try:
            yield
        finally:
            self._pass.batch_sizes = before

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

    def measured(self, layer: str) -> set[str]:
        """Return the local names of the layer's parameters that were ever measured."""
        return self._accounts[layer].measured if layer in self._accounts else set()

    def remove(self) -> None:
        """Give every module its own forward back. A wrapper put around ours meanwhile stays, and passes through."""
        if self.active:
            self.active = False
            for module in self._names:
                uninstall(module)

    def __getstate__(self):
        raise UserError(
            "A tracker belongs to its model and cannot be copied or pickled; make one for the copied model."
        )


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
