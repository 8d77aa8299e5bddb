"""Per-layer options: defaults, overrides by layer-name pattern, and what values are possible."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from clars.errors import UserError, nearest
from clars.layers import Layer, matches

BOUNDS = {
    "lr": (0.0, float("inf")),
    "momentum": (0.0, 1.0),
    "weight_decay": (0.0, float("inf")),
    "trust_coefficient": (0.0, float("inf")),
}
SWITCHES = ("nesterov", "adapt")
OPTIONS = (*BOUNDS, *SWITCHES)
VECTORS = "@1d"  # the pattern of layers that hold nothing but vectors: normalisations, scales


def check(options: Mapping[str, Any], place: str) -> None:
    """Raise ValueError for an unknown option or an impossible value; `place` says where it was written."""
    for name, value in options.items():
        if name in SWITCHES:
            if not isinstance(value, bool):
                raise ValueError(f"{place}: {name}={value!r} must be True or False.")
        elif name in BOUNDS:
            low, high = BOUNDS[name]
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low <= value < high:
                raise ValueError(f"{place}: {name}={value!r} must be a number in [{low:g}, {high:g}).")
        else:
            near = nearest(name, OPTIONS)
            raise ValueError(f"{place}: option {name!r} is not known.{near} Known: {', '.join(OPTIONS)}.")


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
    check(defaults, "optimizer")
    for pattern, options in overrides.items():
        check(options, f"overrides[{pattern!r}]")
        if not any(_matches(layer, pattern) for layer in layers):
            names = [layer.name for layer in layers]
            raise ValueError(
                f"overrides: pattern {pattern!r} matches no layer.{nearest(pattern, [*names, VECTORS])} "
                "List the names with [layer.name for layer in clars.layers(model)]."
            )
    result = []
    for layer in layers:
        group = {"params": list(layer.parameters.values()), "layer": layer.name, **defaults}
        for pattern, options in overrides.items():
            if _matches(layer, pattern):
                group.update(options)
        result.append(group)
    return result


def merged(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join the groups with the same options; "layers" are then the names."""
    joined: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        options = {name: value for name, value in group.items() if name not in ("params", "layer", "layers")}
        whole = joined.setdefault(tuple(sorted(options.items())), {"params": [], "layers": [], **options})
        whole["params"] += group["params"]
        whole["layers"] += layers_of(group)
    return list(joined.values())


def layers_of(group: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers in a parameter group."""
    return group["layers"] if "layers" in group else [group["layer"]]


def by_layer(groups: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return for each layer's name the group that it is in."""
    return {layer: group for group in groups for layer in layers_of(group)}


def check_saved(saved: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]) -> None:
    """Check that the parameter groups of a saved state are those of an optimizer's own layers.

    Raises:
        UserError: the layers differ, or an option is missing.
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
        if lacking := [name for name in OPTIONS if name not in group]:  # torch has more among the defaults
            raise UserError(
                f"{place}: lacks the option {lacking[0]!r}. The state was changed, or is of another version."
            )
        check({name: group[name] for name in OPTIONS}, place)


def _names(group: Mapping[str, Any]) -> list[str]:
    """Return the names of the layers of a saved group, if it has such."""
    return layers_of(group) if "layers" in group or "layer" in group else []


def _matches(layer: Layer, pattern: str) -> bool:
    if pattern == VECTORS:
        return all(parameter.dim() <= 1 for parameter in layer.parameters.values())
    return matches(layer.name, pattern)
