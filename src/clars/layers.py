"""What counts as layer k: the unit that gets one rate."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # `import clars` brings this file, and torch only where it is used
    from torch import nn

LayerUnit = Literal["module", "parameter"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its name, the module that owns its parameters, and those parameters by their local names.

    `prefix` before a local name makes the parameter's name in the model.
    """

    name: str
    module: "nn.Module"
    parameters: "dict[str, nn.Parameter]"
    prefix: str = ""


def layers(model: "nn.Module", by: LayerUnit = "module") -> list[Layer]:
    """List the layers of `model` that can be trained, in the order in which the model registers them.

    With `by="module"` the trainable weight and bias of one linear, bilinear, convolution, normalisation or embedding
    module (subclasses included) are one layer, named as the module. Every other parameter (a class token, a position
    embedding, a layer scale) is a layer by itself, named as the parameter. With `by="parameter"` every parameter is.
    A model that is one such module itself is the layer "(model)". Frozen parameters belong to no layer; a parameter
    reached by two names belongs to the first.

    Raises:
        ValueError: `model` is no module, or `by` is neither "module" nor "parameter".
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise ValueError(
            f"A model is needed here, not {type(model).__name__}: its layers give the parameter groups. Options per "
            "layer go into overrides={pattern: options}."
        )
    if by not in ("module", "parameter"):
        raise ValueError(f"layers={by!r} is not known: use 'module' or 'parameter'.")
    found: list[Layer] = []
    seen: set[int] = set()
    for module_name, module in uncompiled(model).named_modules():
        own = {
            name: parameter
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad and id(parameter) not in seen
        }
        seen.update(id(parameter) for parameter in own.values())
        prefix = f"{module_name}." if module_name else ""
        if by == "module" and isinstance(module, _joint()):
            if own:
                found.append(Layer(module_name or "(model)", module, own, prefix))
        else:
            found += [Layer(prefix + name, module, {name: parameter}, prefix) for name, parameter in own.items()]
    return found


def uncompiled(model: "nn.Module") -> "nn.Module":
    """Return the model that torch.compile was called with, where `model` is what that returned."""
    return model._orig_mod if type(model).__name__ == "OptimizedModule" else model


def matches(name: str, pattern: str) -> bool:
    """Tell whether a layer's name is a pattern itself, whatever characters it holds, or fits it as fnmatch has it."""
    return name == pattern or fnmatchcase(name, pattern)


def covering(names: Sequence[str], others: Iterable[str]) -> list[str]:
    """Return few patterns that all of `names` match and none of `others`."""
    others, left, chosen = list(others), list(names), []
    candidates = [
        pattern
        for pattern in dict.fromkeys(pattern for name in names for pattern in _generalised(name))
        if not any(matches(other, pattern) for other in others)
    ]
    while left:
        best = max(candidates, key=lambda pattern: (sum(matches(name, pattern) for name in left), -len(pattern)))
        chosen.append(best)
        left = [name for name in left if not matches(name, best)]
    return chosen


def _generalised(name: str) -> list[str]:
    """Return patterns that a layer's name fits: any numbers in place of its last ones, any ending, or both."""
    numbers = list(re.finditer(r"\d+", name))
    found = [name]
    for kept in range(len(numbers) + 1):
        start = numbers[kept].start() if kept < len(numbers) else len(name)
        parts = (name[:start] + re.sub(r"\d+", "*", name[start:])).split(".")
        found += [".".join(parts), *(".".join([*parts[:depth], "*"]) for depth in range(1, len(parts)))]
    return found


@cache
def _joint() -> tuple[type, ...]:
    """Return the modules whose parameters enter one function together: their joint norm has a meaning per example."""
    from torch import nn

    products = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
    return (
        *products,
        nn.LayerNorm,
        nn.GroupNorm,
        nn.Embedding,
        nn.EmbeddingBag,
        nn.modules.batchnorm._BatchNorm,
        nn.modules.instancenorm._InstanceNorm,
    )
