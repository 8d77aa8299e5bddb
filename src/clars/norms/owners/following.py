"""Follows the examples of a batch through whatever a model computes, operator by operator."""

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clars.norms.owners.labels import Labels, Unknown
from clars.norms.owners.pattern import Pattern

aten = torch.ops.aten

# Batch statistics tie all examples together; what is kept is whose position an element has.
NORMALISATIONS = {
    aten.native_batch_norm,
    aten._native_batch_norm_legit,
    aten._batch_norm_with_update,
    aten._batch_norm_impl_index,
    aten.cudnn_batch_norm,
    aten.miopen_batch_norm,
    aten.batch_norm_elemt,
}
COPIES = {aten.clone, aten._to_copy, aten.copy_, aten.masked_fill, aten.masked_fill_}
UNFILLED = {aten.empty_like, aten.new_empty, aten.new_empty_strided}


class Following(TorchDispatchMode):
    """While it is entered, the results of operators are labelled with the examples they belong to.

    Views need nothing, as they share the memory of what they are views of. Results of an elementwise operator belong
    to whom its operands do. Any other operator is run once more with the values of some examples replaced by NaN:
    where these arrive is theirs.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        chosen = torch.rand(labels.examples, generator=torch.Generator().manual_seed(0)) < 0.5
        if labels.examples > 1:  # so that the choice is no other after a flip or a roll of the batch
            chosen[0], chosen[-1] = True, False
        self.chosen = chosen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before = {id(x) for x in tensors((*args, *kwargs.values())) if self.labels.of(x) is not None}
        result = func(*args, **kwargs)
        if before:
            self._label(func, args, kwargs, result)
        return result

    def _label(self, func, args, kwargs, result) -> None:
        operands = [(x, self.labels.of(x)) for x in tensors((*args, *kwargs.values()))]
        storages = {x.untyped_storage()._cdata for x, _ in operands}
        made = [x for x in tensors((result,)) if x.untyped_storage()._cdata not in storages]
        changed = list(_changed(func, args, kwargs))
        if not made and not changed:
            return
        owned = [(x, label) for x, label in operands if label not in (None, Unknown.STRAY)]
        for x in changed:
            self.labels.write(x, elementwise([each for each in owned if each[0] is not x], x))
        for x in made:
            self.labels.put(x, Unknown.STRAY)
        if not owned or func.overloadpacket in UNFILLED:
            return
        found = self._found(func, args, kwargs, made, owned)
        for x, label in zip(made, found):
            self.labels.put(x, label)

    def _found(self, func, args, kwargs, made: list[Tensor], owned) -> list[Pattern | Unknown | None]:
        kind = func.overloadpacket
        if any(label is Unknown.MIXED for _, label in owned):
            return [Unknown.MIXED] * len(made)
        if torch.Tag.pointwise in func.tags or kind in COPIES:
            return [elementwise(owned, x) for x in made]
        if "scaled_dot_product" in kind.__name__:
            return [self._attended(owned, x) for x in made]
        if kind in NORMALISATIONS or torch.Tag.nondeterministic_seeded in func.tags:
            first = args[0]
            alike = [x.shape == first.shape or x.shape[:-1] == first.shape[:-1] for x in made]
            return [self.labels.of(first) if same else Unknown.MIXED for same in alike]
        if kind is aten.embedding and self.labels.of(args[0]) is None:
            return [self.labels.of(args[1])]
        if kind is aten.index and self.labels.of(args[0]) is None:
            return [_looked_up(args[1], self.labels)]
        return self._probed(func, args, kwargs, made)

    @staticmethod
    def _attended(owned, x: Tensor) -> Pattern | Unknown:
        """Return where the examples are in an attention's result: all but the last two dimensions are those of queries,
        keys and values.
        """
        found = {label for _, label in owned}
        label = found.pop()
        if found or isinstance(label, Unknown) or label.dim >= owned[0][0].dim() - 2 or x.dim() <= label.dim:
            return Unknown.MIXED
        return label if x.shape[label.dim] % label.rows == 0 else Unknown.MIXED

    def _probed(self, func, args, kwargs, made: list[Tensor]) -> list[Pattern | Unknown | None]:
        """Run an operator again with the chosen examples spoilt, and see where that arrives."""
        if self.labels.examples == 1:
            return [Pattern(0, 1, len(x)) if x.dim() else Unknown.MIXED for x in made]
        if func._schema.is_mutable or func.namespace not in ("aten", "torchvision", "clars", "clars_device"):
            return [Unknown.MIXED] * len(made)
        spoilt = torch.utils._pytree.tree_map_only(Tensor, self._spoilt, (args, kwargs))
        try:
            again = list(tensors((func(*spoilt[0], **spoilt[1]),)))
        except (RuntimeError, IndexError):
            return [Unknown.MIXED] * len(made)
        if len(again) != len(made):
            return [Unknown.MIXED] * len(made)
        return [self._where(x, y) for x, y in zip(made, again)]

    def _spoilt(self, x: Tensor) -> Tensor:
        label = self.labels.of(x)
        if not isinstance(label, Pattern):
            return x
        chosen = self._mask(x.shape[label.dim], label, x.device)
        chosen = chosen.view(-1, *[1] * (x.dim() - 1 - label.dim))
        if x.dtype.is_floating_point or x.dtype.is_complex:
            return torch.where(chosen, torch.nan, x)
        return torch.where(chosen, (x == 0).to(x.dtype), x)

    def _mask(self, size: int, pattern: Pattern, device: torch.device | str) -> Tensor:
        """Return which of the indices along a dimension belong to the chosen examples."""
        chosen = self.chosen.to(device)
        return chosen.repeat_interleave(pattern.inner).repeat(size // (pattern.inner * len(chosen)))

    def _where(self, x: Tensor, spoilt: Tensor) -> Pattern | Unknown | None:
        """Return where x, which differs from what came of spoilt operands, has its examples."""
        if x.shape != spoilt.shape:
            return Unknown.MIXED
        differs = (x != spoilt) & ~(x.isnan() & spoilt.isnan())
        if not differs.any():
            return None if x.dtype.is_floating_point else Unknown.MIXED
        possible = []
        for pattern in self._candidates(x.shape):
            others = [dim for dim in range(x.dim()) if dim != pattern.dim]
            arrived = (differs.sum(others) if others else differs) > 0
            mine = self._mask(x.shape[pattern.dim], pattern, x.device)
            if torch.equal(arrived, mine):
                return pattern
            if not (arrived & ~mine).any():
                possible.append(pattern)
        return possible[0] if len(possible) == 1 else Unknown.MIXED

    def _candidates(self, shape: torch.Size) -> Iterator[Pattern]:
        for dim, size in enumerate(shape):
            rows, rest = divmod(size, self.labels.examples)
            if not rest:
                yield from (Pattern(dim, rows // inner, inner) for inner in range(1, rows + 1) if rows % inner == 0)


def elementwise(owned: Iterable[tuple[Tensor, Pattern | Unknown]], x: Tensor) -> Pattern | Unknown | None:
    """Return where the examples are in x, which was formed element by element from operands, broadcast against it."""
    found = set()
    for operand, label in owned:
        if isinstance(label, Unknown):
            return label
        found.add(label._replace(dim=label.dim + x.dim() - operand.dim()))
    if len(found) != 1:
        return Unknown.MIXED if found else None
    (label,) = found
    return label if label.dim >= 0 and x.shape[label.dim] % label.rows == 0 else Unknown.MIXED


def tensors(values: Iterable) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def _changed(func, args, kwargs) -> Iterator[Tensor]:
    """Yield the tensors that an operator writes into."""
    if not func._schema.is_mutable:
        return
    given = chain(zip(func._schema.arguments, args), ((a, kwargs.get(a.name)) for a in func._schema.arguments))
    for argument, value in given:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors((value,))


def _looked_up(indices: Iterable[Tensor | None], labels: Labels) -> Pattern | Unknown:
    """Return where the examples are in a table of nobody's, looked up by indices of examples."""
    indices = list(indices)
    present = [at for at, index in enumerate(indices) if index is not None]
    together = present[-1] - present[0] + 1 == len(present)
    some = [indices[at] for at in present]
    shape = torch.broadcast_shapes(*(index.shape for index in some))
    owned = [(index, label) for index in some if (label := labels.of(index)) not in (None, Unknown.STRAY)]
    label = elementwise(owned, torch.empty(shape, device="meta"))
    if not isinstance(label, Pattern):
        return Unknown.MIXED
    return label._replace(dim=label.dim + (present[0] if together else 0))
