"""Per-layer options: defaults, overrides by layer-name pattern, and what values are possible."""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from math import inf
from typing import Any, NamedTuple

from clars.errors import UserError, nearest
from clars.layers import Layer, matches
from clars.sharding.layout import whole_shape


class Interval(NamedTuple):
    """The numbers from `low` up to `high`, and that one too where it is closed."""

    low: float
    high: float = inf
    closed: bool = False

    def holds(self, value: object) -> bool:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and (self.low <= value < self.high or (self.closed and value == self.high))

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.closed else ')'}"


NUMBERS = {
    "lr": Interval(0.0),
    "momentum": Interval(0.0, 1.0),
    "weight_decay": Interval(0.0),
    "trust_coefficient": Interval(0.0),
    "max_ratio": Interval(0.0, closed=True),
    "step": Interval(0.0),
}
PAIRS = {"betas": Interval(0.0, 1.0)}
SWITCHES = ("nesterov", "adapt", "decay_in_ratio", "rate_in_buffer")
LATER = {"max_ratio": inf, "decay_in_ratio": True, "rate_in_buffer": True}  # what states without them mean
VECTORS = "@1d"  # the pattern of layers that hold nothing but vectors: normalisations, scales


def check(options: Mapping[str, Any], place: str, known: Collection[str]) -> None:
    """Raise ValueError for an option that is not among `known`, or a value that is impossible.

    `place` says where it was written.
    """
    for name, value in options.items():
        if name not in known:
            near = nearest(name, tuple(known))
            raise ValueError(f"{place}: option {name!r} is not known.{near} Known: {', '.join(known)}.")
        if wanted := _wanted(name, value):
            raise ValueError(f"{place}: {name}={value!r} must be {wanted}.")


def _wanted(name: str, value: object) -> str:
    """Return what an option's value must be, or nothing if it is that."""
    if name in SWITCHES:
        return "" if isinstance(value, bool) else "True or False"
    if name in PAIRS:
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        return "" if pair and all(map(PAIRS[name].holds, value)) else f"two numbers in {PAIRS[name]}"
    return "" if NUMBERS[name].holds(value) else f"a number in {NUMBERS[name]}"


def groups(
    layers: Sequence[Layer],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    """Return one parameter group per layer, with its name under "layer"; of several matching patterns the last wins.

    Raises:
        ValueError: an option is unknown or impossible, or a pattern matches no layer.
    """
    overrides = overrides or {}
    check(defaults, "optimizer", defaults)
    for pattern, options in overrides.items():
        check(options, f"overrides[{pattern!r}]", defaults)
        if not any(fits(layer, pattern) for layer in layers):
            names = [layer.name for layer in layers]
            raise ValueError(
                f"overrides: pattern {pattern!r} matches no layer.{nearest(pattern, {*names, VECTORS} - {pattern})} "
                "List the names with [layer.name for layer in clars.layers(model)]."
            )
    result = []
    for layer in layers:
        group = {"params": list(layer.parameters.values()), "layer": layer.name, **defaults}
        for pattern, options in overrides.items():
            if fits(layer, pattern):
                group.update(options)
        result.append(group)
    return result


def merged(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join the groups with the same options; "layers" are then the names."""
    joined: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        options = {name: value for name, value in group.items() if name not in ("params", "layer", "layers")}
        whole = joined.setdefault(values(options, sorted(options)), {"params": [], "layers": [], **options})
        whole["params"] += group["params"]
        whole["layers"] += layers_of(group)
    return list(joined.values())


def values(group: Mapping[str, Any], names: Sequence[str]) -> tuple:
    """Return names and values of some options of a group, to compare or to look up by."""
    return tuple((name, tuple(group[name]) if name in PAIRS else group[name]) for name in names)


def layers_of(group: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers in a parameter group."""
    return group["layers"] if "layers" in group else [group["layer"]]


def by_layer(groups: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return for each layer's name the group that it is in."""
    return {layer: group for group in groups for layer in layers_of(group)}


def completed(saved: Sequence[Mapping[str, Any]], options: Sequence[str]) -> list[dict[str, Any]]:
    """Return saved groups with the options that their version did not have yet."""
    return [{name: LATER[name] for name in options if name in LATER} | dict(group) for group in saved]


def check_saved(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]], options: Sequence[str]) -> None:
    """Check that the parameter groups of a saved state are those of an optimizer's own layers.

    Raises:
        UserError: the layers differ, or one of the options is missing.
        ValueError: an option is impossible.
    """
    names = [[_names(group) for group in groups] for groups in (saved, own)]
    if names[0] != names[1]:
        missing = sorted(set(chain(*names[1])) - set(chain(*names[0])))[:3]
        raise UserError(
            f"The state is of other layers ({len(saved)} groups against {len(own)} here, without {missing})."
        )
    for group in saved:
        place = f"state of layer {_names(group)[0]!r}"
        if lacking := [name for name in options if name not in group]:  # torch has more among the defaults
            raise UserError(
                f"{place}: lacks the option {lacking[0]!r}. The state was changed, or is of another version."
            )
        check({name: group[name] for name in options}, place, options)


def _names(group: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers of a saved group, if it has such."""
    return layers_of(group) if "layers" in group or "layer" in group else []


def fits(layer: Layer, pattern: str) -> bool:
    """Tell whether a layer is one of those that a pattern of overrides stands for."""
    if pattern == VECTORS:
        return all(len(whole_shape(parameter)) <= 1 for parameter in layer.parameters.values())
    return matches(layer.name, pattern)
