"""Follows the examples of a batch through whatever a model computes, operator by operator."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clars.norms.owners.labels import Labels, Unknown, has_memory
from clars.norms.owners.pattern import Pattern
from clars.norms.owners.tensors import tensors_in

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
UNTOUCHED = {aten.fill_, aten.zero_}
SCATTERS = {aten.index_put_, aten.scatter_, aten.scatter_add_, aten.index_copy_, aten.index_add_, aten.index_fill_}
UNFILLED = {aten.empty_like, aten.new_empty, aten.new_empty_strided}


class Following(TorchDispatchMode):
    """While it is entered, the results of operators are labelled with the examples they belong to.

    Views need nothing, as they share the memory of what they are views of. Results of an elementwise operator belong
    to whom its operands do. Any other operator is run again with the values of some examples replaced by NaN, and with
    those of others: where these arrive is theirs.
    """

    def __init__(self, labels: Labels) -> None:
        super().__init__()
        self.labels = labels
        chosen = torch.rand(labels.examples, generator=torch.Generator().manual_seed(0)) < 0.5
        if labels.examples > 1:  # so that the choice is no other after a flip or a roll of the batch
            chosen[0], chosen[-1] = True, False
        later = torch.arange(labels.examples) >= (labels.examples + 1) // 2
        self.choices = [chosen, later]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch._C._current_graph_task_id() != -1:  # a backward pass in the midst of the forward
            return func(*args, **kwargs)
        operands = [(x, self.labels.of(x)) for x in tensors_in((args, kwargs))]
        result = func(*args, **kwargs)
        if any(label is not None for _, label in operands):
            self._label(func, args, kwargs, operands, result)
        return result

    def _label(self, func, args, kwargs, operands: list[tuple[Tensor, Pattern | Unknown | None]], result) -> None:
        storages = {x.untyped_storage()._cdata for x, _ in operands if has_memory(x)}
        results = filter(has_memory, tensors_in((result,)))
        made = [x for x in results if x.untyped_storage()._cdata not in storages]
        changed = list(_changed(func, args, kwargs))
        if not made and not changed:
            return
        owned = [(x, label) for x, label in operands if label not in (None, Unknown.STRAY)]
        for x in changed:
            self._written(func, args, x, [each for each in owned if each[0] is not x])
        if func.overloadpacket in UNFILLED:
            return
        if not owned:
            for x in made:
                self.labels.put(x, Unknown.STRAY)
            return
        found = self._found(func, args, kwargs, made, owned)
        for x, label in zip(made, found):
            self.labels.put(x, label if x.numel() else None)

    def _written(self, func, args, x: Tensor, owned: list[tuple[Tensor, Pattern | Unknown]]) -> None:
        """Note where the examples are in a tensor that an operator has written into."""
        kind, label = func.overloadpacket, self.labels.of(x)
        if _is_elementwise(func) or kind in COPIES or torch.Tag.nondeterministic_seeded in func.tags:
            self.labels.write(x, elementwise(owned, x))
        elif kind in NORMALISATIONS or kind in UNTOUCHED or torch.Tag.inplace_view in func.tags:
            return
        elif isinstance(label, Pattern) and kind in SCATTERS and label.dim not in _indexed(args):
            return  # within each example
        elif owned or label is not None:
            self.labels.put(x, Unknown.MIXED)

    def _found(self, func, args, kwargs, made: list[Tensor], owned) -> list[Pattern | Unknown | None]:
        kind = func.overloadpacket
        if _is_elementwise(func) or kind in COPIES:
            return [elementwise(owned, x) for x in made]
        if kind in NORMALISATIONS and isinstance(self.labels.of(args[0]), Pattern):
            return [self.labels.of(args[0]) if x.shape == args[0].shape else Unknown.MIXED for x in made]
        if any(label is Unknown.MIXED for _, label in owned):
            return [Unknown.MIXED] * len(made)
        if "scaled_dot_product" in kind.__name__:
            return [self._attended(owned, x) for x in made]
        if torch.Tag.nondeterministic_seeded in func.tags:
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
        owned = [x for x in tensors_in((args, kwargs)) if isinstance(self.labels.of(x), Pattern)]
        spoils = self._spoilt if any(map(_has_nan, owned)) else self._altered
        runs = []
        for chosen in self.choices:
            spoilt = torch.utils._pytree.tree_map_only(Tensor, partial(spoils, chosen), (args, kwargs))
            try:
                again = list(tensors_in((func(*spoilt[0], **spoilt[1]),)))
            except (RuntimeError, IndexError):
                return [Unknown.MIXED] * len(made)
            if [x.shape for x in again] != [x.shape for x in made]:
                return [Unknown.MIXED] * len(made)
            runs.append([(x != y) & ~(x.isnan() & y.isnan()) for x, y in zip(made, again)])
        return [self._where(x, differs) for x, differs in zip(made, zip(*runs))]

    def _spoilt(self, chosen: Tensor, x: Tensor) -> Tensor:
        """Return x with NaN in the place of what the chosen examples own, if it can hold that."""
        label = self.labels.of(x)
        return torch.where(_owned(x, label, chosen), torch.nan, x) if isinstance(label, Pattern) and _has_nan(x) else x

    def _altered(self, chosen: Tensor, x: Tensor) -> Tensor:
        """Return x with other whole numbers, of which each is an index wherever there are two, in that place."""
        label = self.labels.of(x)
        return torch.where(_owned(x, label, chosen), (x == 0).to(x.dtype), x) if isinstance(label, Pattern) else x

    def _where(self, x: Tensor, differs: Sequence[Tensor]) -> Pattern | Unknown | None:
        """Return where x has its examples, from where it differs with each choice of examples spoilt."""
        if not any(each.any() for each in differs):
            return None if x.dtype.is_floating_point else Unknown.MIXED
        exact, possible = [], []
        for pattern in self._candidates(x.shape):
            others = [dim for dim in range(x.dim()) if dim != pattern.dim]
            matches = []
            for chosen, each in zip(self.choices, differs):
                arrived = (each.sum(others) if others else each) > 0
                mine = _along(pattern, x, chosen)
                matches.append((torch.equal(arrived, mine), not (arrived & ~mine).any()))
            if all(equal for equal, _ in matches):
                exact.append(pattern)
            elif all(within for _, within in matches):
                possible.append(pattern)
        found = exact or possible
        return found[0] if len(found) == 1 else Unknown.MIXED

    def _candidates(self, shape: torch.Size) -> Iterator[Pattern]:
        for dim, size in enumerate(shape):
            rows, rest = divmod(size, self.labels.examples)
            if not rest:
                yield from (Pattern(dim, rows // inner, inner) for inner in range(1, rows + 1) if rows % inner == 0)


def elementwise(owned: Iterable[tuple[Tensor, Pattern | Unknown]], x: Tensor) -> Pattern | Unknown | None:
    """Return where the examples are in x, which was formed element by element from operands, broadcast against it.

    What is mixed and the same for all examples, such as a statistic of the batch, leaves each in its position.
    """
    found, mixed = set(), []
    for operand, label in owned:
        if isinstance(label, Unknown):
            mixed.append(operand)
        else:
            found.add(label._replace(dim=label.dim + x.dim() - operand.dim()))
    if len(found) != 1:
        return Unknown.MIXED if found or mixed else None
    (label,) = found
    if label.dim < 0 or x.shape[label.dim] % label.rows != 0:
        return Unknown.MIXED
    within = [label.dim - (x.dim() - operand.dim()) for operand in mixed]
    same = all(dim < 0 or operand.shape[dim] == 1 for dim, operand in zip(within, mixed))
    return label if same else Unknown.MIXED


def _along(pattern: Pattern, x: Tensor, chosen: Tensor) -> Tensor:
    """Return which of the indices along the pattern's dimension of x belong to the chosen examples."""
    rows = x.shape[pattern.dim] // (pattern.inner * len(chosen))
    return chosen.to(x.device).repeat_interleave(pattern.inner).repeat(rows)


def _owned(x: Tensor, pattern: Pattern, chosen: Tensor) -> Tensor:
    """Return which elements of x do, to be broadcast against it."""
    return _along(pattern, x, chosen).view(-1, *[1] * (x.dim() - 1 - pattern.dim))


def _is_elementwise(func) -> bool:
    """Tell whether an operator, or the one that it does in place, works element by element."""
    name = func.overloadpacket.__name__
    plain = getattr(aten, name[:-1], None) if name.endswith("_") else None
    alike = [getattr(plain, overload) for overload in plain.overloads()] if plain is not None else []
    return any(torch.Tag.pointwise in each.tags for each in (func, *alike))


def _indexed(args) -> list[int]:
    """Return the dimensions along which an operator that scatters has indices."""
    if isinstance(args[1], int):
        return [args[1] % args[0].dim()]
    return [dim for dim, index in enumerate(args[1]) if index is not None]


def _has_nan(x: Tensor) -> bool:
    return x.dtype.is_floating_point or x.dtype.is_complex


def _changed(func, args, kwargs) -> Iterator[Tensor]:
    """Yield the tensors that an operator writes into."""
    if not func._schema.is_mutable:
        return
    given = chain(zip(func._schema.arguments, args), ((a, kwargs.get(a.name)) for a in func._schema.arguments))
    for argument, value in given:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in((value,))


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
