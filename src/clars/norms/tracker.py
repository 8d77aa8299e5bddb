"""Installs the tracking of per-example gradient norms in a model, and reads it out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from threading import get_ident
from weakref import WeakSet

import torch
from torch import Tensor, nn

from clars.errors import UserError
from clars.layers import Layer, layers, uncompiled
from clars.native import where
from clars.norms.estimator import Estimator
from clars.norms.owners import Labels
from clars.norms.owners.labels import is_fake
from clars.norms.owners.tensors import tensors_in
from clars.norms.rules.synchronised import PATCH
from clars.norms.watch.accumulator import COMPILED_TWICE, Accumulator
from clars.norms.watch.backward_pass import BackwardPass, Shortcuts
from clars.norms.watch.batch import Batch
from clars.norms.watch.decisions import Decisions
from clars.norms.watch.forward import install, tracker_of, uninstall
from clars.norms.watch.interception import Interception
from clars.norms.watch.slowness import Slowness
from clars.norms.watch.sums import totals
from clars.norms.watch.traced import keep_whole
from clars.norms.watch.tracked_parameter import TrackedParameter
from clars.norms.watch.untrackable import COMPUTED, TIED, refuse_scripted
from clars.sharding.fsdp import cut_gradients
from clars.sharding.gradients import Gradients, Holder

TRACKERS: "WeakSet[ExampleNorms]" = WeakSet()  # that there are
_repeats = count(-2, -1)  # numbers of backward passes that are repeated without autograd, which counts upwards


class ExampleNorms:
    """S_k = sum over examples i of ||c_{i,k}||, for every layer k, formed in the model's own backward pass.

    c_{i,k} is the contribution of example i to the gradient of layer k: the part of it that flows through the rows of
    the layer's output gradients that are the example's, in all calls of the layer. The contributions sum to the
    gradient. Which rows are whose is found in the first forward with inputs of a size, which is followed. In
    a model without cross-example layers and with a loss averaged over B examples, c_{i,k} = grad_k f_i / B, so S_k is
    the mean of the per-example gradient norms. Under batch statistics the examples have no losses of their own; the
    contribution is what stays defined.

    S_k has the unit of the gradient: loss reduction, accumulation over micro-batches and loss scaling scale both
    alike. It is that of the gradient that is there: what a backward pass adds to `.grad` it adds to the sums, and what
    is cleared there, in whatever way, is cleared here. The model computes the same values as before; neither
    `state_dict` nor `parameters` show the tracking. A model has one tracker: a later one takes the place of an earlier
    one, which then refuses to be read.

    Args:
        model: the model; move it and wrap it as you like afterwards. Dimension 0 of its input is the batch.
        estimator: "exact" forms the norm of every example. "group" forms those of sums over groups of consecutive
            examples: S_k is then between that of single examples and the norm of the gradient, which is one group's.
            "subset" draws a block of the examples anew at each backward pass, and scales its sums up: an unbiased
            estimate.
        layers: the layers to track; by default all of `clars.layers(model)`.
        group: how many examples a group of "group" has; 8 by default. Groups do not reach over backward passes or
            processes; what is left over in one makes a smaller group.
        fraction: of the batch that "subset" measures; 1/8 by default.
        seed: of the draws of "subset".
        memory: bytes that forming the norms of one layer may take beside its gradient, as long as one example, or one
            group, fits;
            by default what suits a processor's cache or an accelerator. Methods that exceed it are passed over.
        timed: choose among the exact methods by timing them, once per shape (the bits of the results may then differ
            from run to run), or by an estimate of their cost; by default timed on accelerators, estimated on the CPU.
        batch: the name of the argument of the model's forward whose dimension 0 is the batch; by default the first
            tensor's is.
        views: how many views of each example a call's batch holds, one after the other: of two, rows i and B + i are
            example i's. Views that take turns instead give wrong sums, which nothing can notice.
        rows: for layers of which it cannot be found, or is to be another, by the pattern of their names, where the
            examples are in their input: "(b n)", "(n b)" in dimension 0, "n b" in dimension 1; see `owners.read`.
        uncovered: "slow" measures what has no rule of its own by a backward pass of it alone for each example, and
            warns; "refuse" refuses it.

    Raises:
        ValueError: unknown estimator, a fraction outside (0, 1], a group that is no whole number above 0, both
            together, memory that is not positive, views below 1, a pattern of rows that no layer's name fits.
        UnsupportedLayerError: a layer of torch.jit.script; and, at the end of the first forward or backward pass that
            shows it, a layer whose rows cannot be told apart by example, or with uncovered="refuse" one without a
            rule. All layers of which that is known by then are named.

    Warns:
        UserWarning: once of layers that are measured slowly, and after ten steps of what they take.
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: str = "exact",
        *,
        layers: Sequence[Layer] | None = None,
        group: int | None = None,
        fraction: float | None = None,
        seed: int = 0,
        memory: int | None = None,
        timed: bool | None = None,
        batch: str | None = None,
        views: int = 1,
        rows: Mapping[str, str] | None = None,
        uncovered: str = "slow",
    ) -> None:
        if uncovered not in ("slow", "refuse"):
            raise ValueError(f"uncovered={uncovered!r} is not known: use 'slow' or 'refuse'.")
        self.estimator = Estimator(estimator, fraction, seed, memory, timed, group)
        self.model = model = uncompiled(model)
        self.layers = list(layers) if layers is not None else _default(model)
        self._batch = Batch(batch, views, rows or {}, [layer.name for layer in self.layers])
        refuse_scripted(self.layers)
        self.active, self.replaced = True, False
        self._pass = BackwardPass(self.estimator)
        self._pass.remedy = self._remedy
        self.decisions, self.unfollowed = Decisions(), False
        self.slowness = self._pass.slowness = Slowness() if uncovered == "slow" else None
        self._accumulators = {layer.name: Accumulator(layer, self._pass) for layer in self.layers}
        self._parameters_of: dict[nn.Module, list[TrackedParameter]] = {model: []}
        for layer in self.layers:
            own = (TrackedParameter(self._accumulators[layer.name], layer.module, name) for name in layer.parameters)
            self._parameters_of.setdefault(layer.module, []).extend(own)
        for module in _called(model, set(self._parameters_of)):
            self._parameters_of.setdefault(module, [])
        self.parameters: dict[int, TrackedParameter] = {}
        self._moved = False
        self.refresh_all()
        self._watching: dict[tuple[int, int], Interception | None] = {}
        self._install()
        TRACKERS.add(self)

    def _install(self) -> None:
        PATCH.hold(self)
        keep_whole()
        for module in self._parameters_of:
            earlier = tracker_of(module)
            if earlier is not None and earlier is not self:
                earlier.remove()
                earlier.replaced = True
            install(module, self)

    def refresh(self, module: nn.Module) -> None:
        """Note the tensors that are the module's parameters now.

        Raises:
            UnsupportedLayerError: one is computed from others, or is that of another layer too.
        """
        for parameter in self._parameters_of[module]:
            value = parameter.present()
            other = self.parameters.get(id(value))
            if other is parameter and parameter.tensor is value:
                continue
            if self.parameters.get(id(parameter.tensor)) is parameter:
                del self.parameters[id(parameter.tensor)]
            parameter.tensor, self._moved = value, True
            if value is None:
                self._refuse_missing(parameter)
            elif value.grad_fn is not None:
                self.refuse({parameter.layer: f"has a {parameter.name!r} {COMPUTED}"})
            elif other is not None and other.present() is value:
                self.refuse({parameter.layer: f"and layer {other.layer!r} share one parameter now. {TIED}"})
            elif isinstance(value, nn.Parameter):  # else torch.func.functional_call lends it a tensor for one call
                self.parameters[id(value)] = parameter

    def _refuse_missing(self, parameter: TrackedParameter) -> None:
        """Refuse a parameter that was taken away: what stands there now, if anything, has a norm of its own."""
        if getattr(parameter.module, parameter.name, None) is not None:
            self.refuse({parameter.layer: f"has a {parameter.name!r} {COMPUTED}"})

    def refresh_all(self) -> None:
        """Note the tensors that are the parameters of all modules now."""
        for module in self._parameters_of:
            self.refresh(module)
        if self._moved:  # perhaps by fully_shard
            self._moved = False
            cut = cut_gradients(self.model)
            for layer in self.layers if cut else ():
                own = [cut[layer.module, local] for local in layer.parameters if (layer.module, local) in cut]
                self._accumulators[layer.name].gradients = Gradients(own)

    def refuse(self, problems: dict[str, str]) -> None:
        """Refuse layers, named with what they do.

        Raises:
            UnsupportedLayerError: unless what is refused is gathered.
        """
        self._pass.tell(problems)

    def gather_refusals(self) -> dict[str, str]:
        """Return where from now on refused layers are gathered, with what they do, in place of an error."""
        self._pass.gathered = {}
        return self._pass.gathered

    def advise(self, remedy: Callable[[Sequence[str]], str]) -> None:
        """Have `remedy`, called with their names, say what to do about layers that are refused."""
        self._pass.remedy = remedy

    def _remedy(self, refused: Sequence[str]) -> str:
        return (
            "Measure the others: clars.ExampleNorms(model, layers=[layer for layer in clars.layers(model) if "
            "layer.name not in error.problems]), with this as the error."
        )

    @property
    def shortcuts(self) -> Shortcuts:
        """What is there for speed alone, each with a switch."""
        return self._pass.shortcuts

    def is_watching(self) -> bool:
        """Tell whether a forward of this model is being watched by this thread.

        A backward pass called in the midst of a forward recomputes checkpointed parts without our watch, and the
        recomputation of a whole model is watched as its first computation was.
        """
        return _here() in self._watching

    def interception(self) -> Interception | None:
        """Return what watches a forward of this model in this thread; None where there is none, or it is compiled."""
        return self._watching.get(_here()) if self._watching else None

    @property
    def examples(self) -> int | None:
        """How many examples the forward that runs has."""
        return self._pass.batch

    @property
    def slow_layers(self) -> set[str]:
        """The names of the layers that are measured by the slow exact rule."""
        return set() if self.slowness is None else set(self.slowness.layers)

    def word(self, layer: str) -> str | None:
        """Return what the user says of the rows of a layer's input."""
        return self._batch.word(layer)

    def follow(self, module: nn.Module, inputs: Iterable) -> Labels | None:
        """Return the labels of a forward that is to be followed; None where all of its calls are known.

        To be called after `begin_watching`.
        """
        found, examples = [tensor for tensor in tensors_in(inputs) if tensor.dim()], self.examples
        if not examples or torch._C._current_graph_task_id() != -1:
            return None
        self.unfollowed = not torch.is_grad_enabled() or any(map(is_fake, (*found, *module.parameters())))
        trained = tuple([each.tensor is not None and each.tensor.requires_grad for each in self.parameters.values()])
        signature = (id(module), module.training, examples == 1, trained, *((x.shape[1:], x.dtype) for x in found))
        if self.unfollowed or self.decisions.begin(signature):
            return None
        return self._batch.labels(found, examples)

    def begin_watching(self, module: nn.Module, args: tuple, kwargs: dict, interception: Interception | None) -> None:
        """Mark a forward as watched; every layer must see as many examples as its input has, if it has any.

        (A context manager would be more than older torch.compile can follow.)
        """
        self._watching[_here()] = interception
        if where.is_compiling() or torch._C._current_graph_task_id() == -1:
            self._pass.batch = self._batch.examples(module, module is self.model, args, kwargs)

    def end_watching(self) -> None:
        """Undo `begin_watching`."""
        self._watching.pop(_here(), None)
        if self.slowness is not None:
            self.slowness.warn()

    def totals(self, look: bool = True) -> dict[str, Tensor]:
        """Return, for each layer that a backward pass reached and whose gradient is there, a tensor [4]:

        sum of norms, sum of squared norms, number of examples, sum of the squared sizes of the groups.

        Args:
            look: whether to find out first which gradients were cleared since; else those are still counted that were
                set to zero or None after the last backward pass.

        Raises:
            ValueError: a later tracker took this one's place in the model.
            UnsupportedLayerError: a layer was used twice in a compiled forward.
        """
        self._refuse_unreadable()
        if look:
            self._pass.look()
        twice = [name for name, accumulator in self._accumulators.items() if accumulator.compiled_twice]
        if twice:
            self.refuse(dict.fromkeys(twice, COMPILED_TWICE))
        return totals(self._accumulators.values())

    def _refuse_unreadable(self) -> None:
        if self.replaced:
            raise UserError(
                "A later ExampleNorms, CLARS or NoiseScale tracks this model; this one sees nothing any more. Keep "
                "one, and give it to the others as norms=: clars.NoiseScale(model, optimizer.norms)."
            )
        self.estimator.check()

    @property
    def last_pass(self) -> tuple[int | None, int | None]:
        """What tells the last backward pass that was measured from those before."""
        return self._pass.number, max((each.compiled_pass or 0 for each in self._accumulators.values()), default=0)

    @property
    def generation(self) -> int:
        """How often sums were forgotten, with gradients that were cleared or by `reset`."""
        return sum(each.generation for each in self._accumulators.values())

    def sums(self) -> dict[str, Tensor]:
        """Return S_k, a scalar tensor in the unit of the gradient, per layer name.

        A layer without a gradient, or whose gradient was cleared, has the sum zero.

        Raises:
            ValueError: as for `totals`.
            UnsupportedLayerError: the tensor in a parameter's place is no parameter any more.
        """
        found = self.totals()
        self.refresh_all()
        return {name: found[name][0].clone() if name in found else torch.zeros(()) for name in self._accumulators}

    def squares(self) -> dict[str, Tensor]:
        """Return, per layer name, the squared norms [n] of the contributions of each example that is in the gradient.

        They stand in the order of the backward passes, and of the examples in each. With estimator="group" they are
        those of the groups, with "subset" those of the drawn examples. A compiled model leaves sums only, and none of
        these.
        """
        self._refuse_unreadable()
        self._pass.look()
        found = {name: accumulator.squares() for name, accumulator in self._accumulators.items()}
        return {name: torch.cat(squares) for name, squares in found.items() if squares}

    def reset(self) -> None:
        """Forget the sums; the next backward pass starts anew."""
        for accumulator in self._accumulators.values():
            accumulator.reset()

    def cleared(self) -> None:
        """Forget the sums of gradients that somebody has just cleared, but for those that cannot be cleared so."""
        for accumulator in self._accumulators.values():
            if not accumulator.gradients.elsewhere():
                accumulator.reset()

    def scale(self, factor: float) -> None:
        """Multiply the sums, as somebody has multiplied the gradients."""
        for accumulator in self._accumulators.values():
            accumulator.scale(factor)

    def held_by(self, holders: Mapping[str, Holder]) -> None:
        """Take the gradients to add up in `holders`, by the parameters' names in the model."""
        for layer in self.layers:
            own = [holders[layer.prefix + local] for local in layer.parameters]
            self._accumulators[layer.name].gradients = Gradients(own)

    def measured(self, layer: str) -> set[str]:
        """Return the local names of the layer's parameters that were ever measured."""
        return self._accumulators[layer].measured if layer in self._accumulators else set()

    def kept(self) -> list:
        """Return what Python keeps of the sums; see `put`."""
        return [accumulator.kept() for accumulator in self._accumulators.values()]

    def put(self, kept: list) -> None:
        """Take the sums to be those of which `kept` has told: their pass was repeated, and Python did not run.

        The tensors are the same, with new values.
        """
        self._pass.number = next(_repeats)
        for accumulator, each in zip(self._accumulators.values(), kept):
            accumulator.put(each)

    def remove(self) -> None:
        """Give every module its own forward back. A wrapper put around ours meanwhile stays, and passes through."""
        if self.active:
            self.active = False
            for module in self._parameters_of:
                uninstall(module)
            for accumulator in self._accumulators.values():
                accumulator.close()
            PATCH.release(self)

    def __getstate__(self):
        raise UserError(
            "A tracker belongs to its model and cannot be copied or pickled; make one for the copied model."
        )


def _here() -> tuple[int, int]:
    """Return what tells a forward from those of other threads, and of backward passes that recompute parts."""
    if where.is_compiling():
        return 0, 0
    return get_ident(), torch._C._current_graph_task_id()


def _called(model: nn.Module, owners: set[nn.Module]) -> list[nn.Module]:
    """Return the modules around `owners` that can be called by themselves: the batch is what such a call is given."""
    around = [module for module in model.modules() if not owners.isdisjoint(module.modules())]
    return [module for module in around if getattr(type(module), "forward", None) is not nn.Module.forward]


_default = layers  # the class's own argument has the name of the function
