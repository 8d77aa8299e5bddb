"""What counts as layer k: the unit that gets one rate."""

from dataclasses import dataclass
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

    With `by="module"` the trainable weight and bias of one linear, convolution, normalisation or embedding module
    (subclasses included) are one layer, named as the module. Every other parameter (a class token, a position
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
    for module_name, module in model.named_modules():
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


@cache
def _joint() -> tuple[type, ...]:
    """Return the modules whose parameters enter one function together: their joint norm has a meaning per example."""
    from torch import nn

    plain = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding)
    return (*plain, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
