"""Installs the tracking of per-example gradient norms in a model, and reads it out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import Layer, layers
from clars.norms.account import Account, BackwardPass, totals
from clars.norms.estimator import Estimator
from clars.norms.intercept import Part, install, tensors_in, tracker_of, uninstall
from clars.norms.synchronised import take_apart


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
        estimator: "exact" forms the norm of every example. "subset" draws a block of the examples anew at each
            backward pass, and scales its sums up: an unbiased estimate.
        layers: the layers to track; by default all of `clars.layers(model)`.
        fraction: of the batch that "subset" measures; 1/8 by default.
        seed: of the draws of "subset".
        memory: bytes that forming the norms of one layer may take beside its gradient, as long as one example fits;
            by default what suits a processor's cache or an accelerator. Methods that exceed it are passed over.
        timed: choose among the exact methods by timing them, once per shape (the bits of the results may then differ
            from run to run), or by an estimate of their cost; by default timed on accelerators, estimated on the CPU.

    Raises:
        ValueError: unknown estimator, a fraction outside (0, 1], memory that is not positive.
        UnsupportedLayerError: one parameter belongs to several modules; and, at the first forward or backward pass
            that shows it, a parameter used in a function without a rule or more than once.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: str = "exact",
        *,
        layers: Sequence[Layer] | None = None,
        fraction: float | None = None,
        seed: int = 0,
        memory: int | None = None,
        timed: bool | None = None,
    ) -> None:
        self.estimator = Estimator(estimator, fraction, seed, memory, timed)
        self.model = model
        self.layers = list(layers) if layers is not None else _default(model)
        _refuse_shared(model, self.layers)
        self.active, self.replaced = True, False
        self._pass = BackwardPass(self.estimator)
        self._accounts = {layer.name: Account(layer, self._pass) for layer in self.layers}
        self._parts_of: dict[nn.Module, list[Part]] = {model: []}
        for layer in self.layers:
            own = (Part(self._accounts[layer.name], layer.module, name) for name in layer.parameters)
            self._parts_of.setdefault(layer.module, []).extend(own)
        self.parts: dict[int, Part] = {}
        self.refresh_all()
        self._watching: set[int] = set()  # by number of the thread; 0 while a forward is compiled
        self._install()

    def _install(self) -> None:
        take_apart()
        for module in self._parts_of:
            earlier = tracker_of(module)
            if earlier is not None and earlier is not self:
                earlier.remove()
                earlier.replaced = True
            install(module, self)

    def refresh(self, module: nn.Module) -> None:
        """Note the tensors that are the module's parameters now."""
        for part in self._parts_of[module]:
            value = module._parameters.get(part.name)
            if value is None:  # a parametrization computes it
                value = part.present()
            other = self.parts.get(id(value))
            if other is part and part.parameter is value:
                continue
            if self.parts.get(id(part.parameter)) is part:
                del self.parts[id(part.parameter)]
            part.parameter = value
            if other is not None and other.present() is value:
                raise UnsupportedLayerError(
                    f"and layer {other.account.layer!r} share one parameter now: each example's contributions through "
                    "both must be summed before the norm is taken, for which there is no rule. Untie the weights.",
                    part.account.layer,
                )
            if value is not None:
                self.parts[id(value)] = part

    def refresh_all(self) -> None:
        """Note the tensors that are the parameters of all modules now."""
        for module in self._parts_of:
            self.refresh(module)

    def is_watching(self) -> bool:
        """Tell whether a forward of this model is being watched by this thread, outside of a backward pass.

        A backward pass called in the midst of a forward recomputes checkpointed parts without our watch.
        """
        if torch.compiler.is_compiling():
            return 0 in self._watching
        return get_ident() in self._watching and torch._C._current_graph_task_id() == -1

    @contextmanager
    def watching(self, inputs: Iterable) -> Iterator[None]:
        """Mark a forward as watched; every layer must see as many rows as one of the model's inputs has, if given."""
        thread = 0 if torch.compiler.is_compiling() else get_ident()
        outermost, before = thread not in self._watching, self._pass.batch_sizes
        self._watching.add(thread)
        self._pass.batch_sizes = tuple(len(tensor) for tensor in tensors_in(inputs) if tensor.dim())
        try:
            yield
        finally:
            self._pass.batch_sizes = before
            if outermost:
                self._watching.discard(thread)

    def totals(self) -> dict[str, Tensor]:
        """Return, for each layer that a backward pass reached since the last reset, a tensor [3]:

        sum of norms, sum of squared norms, number of examples.

        Raises:
            ValueError: a later tracker took this one's place in the model.
        """
        self._refuse_unreadable()
        self._pass.catch_up()
        return totals(self._accounts.values())

    def _refuse_unreadable(self) -> None:
        if self.replaced:
            raise UserError(
                "A later ExampleNorms, or a later CLARS, tracks this model; this one sees nothing any more. Keep one, "
                "and give it to the optimizer as norms=."
            )
        self.estimator.check()

    def sums(self) -> dict[str, Tensor]:
        """Return S_k, a scalar tensor in the unit of the gradient, per layer name since the last reset.

        A layer that no backward pass reached has the sum zero.

        Raises:
            ValueError: as for `totals`.
        """
        found = self.totals()
        return {name: found[name][0].clone() if name in found else torch.zeros(()) for name in self._accounts}

    def squares(self) -> dict[str, Tensor]:
        """Return, per layer name, the squared norms [n] of the contributions of each example measured so far.

        They stand in the order of the backward passes since the last reset, and of the examples in each. With
        estimator="subset" they are those of the drawn examples. A compiled model leaves sums only, and none of these.
        """
        self._refuse_unreadable()
        self._pass.catch_up()
        booked = {name: [squares for squares, _ in account.booked] for name, account in self._accounts.items()}
        return {name: torch.cat(squares) for name, squares in booked.items() if squares}

    def reset(self) -> None:
        """Forget the sums; the next backward pass starts anew."""
        self._pass.catch_up()
        for account in self._accounts.values():
            account.reset()

    def keep_until_reset(self) -> None:
        """Keep the sums until `reset`, though the parameters have no gradients: a strategy moves those away."""
        self._pass.gradients_stay = False

    def measured(self, layer: str) -> set[str]:
        """Return the local names of the layer's parameters that were ever measured."""
        return self._accounts[layer].measured if layer in self._accounts else set()

    def remove(self) -> None:
        """Give every module its own forward back. A wrapper put around ours meanwhile stays, and passes through."""
        if self.active:
            self.active = False
            for module in self._parts_of:
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
