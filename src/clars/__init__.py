"""CLARS: complete layer-wise adaptive rate scaling, for large-batch training without warmup."""

from importlib import import_module
from typing import TYPE_CHECKING

from clars.errors import UnsupportedLayerError, UserError
from clars.extras import load, push_to_hub

# Now, not at first use: whatever imports the module of that name later would put it in the place of the function.
from clars.layers import Layer, layers

if TYPE_CHECKING:
    from clars.graphs import graphed
    from clars.norms import ExampleNorms, NoiseScale, oracle
    from clars.optim import CLARS, LAMB, LARS, LayerStats
    from clars.optim.bind import bind

__version__: str

__all__ = [
    "CLARS",
    "LAMB",
    "LARS",
    "ExampleNorms",
    "Layer",
    "LayerStats",
    "NoiseScale",
    "UnsupportedLayerError",
    "UserError",
    "bind",
    "graphed",
    "layers",
    "load",
    "oracle",
    "push_to_hub",
]

# Where the other names are. Each is imported when it is first asked for: the command line answers without torch.
_PLACES = {
    "CLARS": "clars.optim",
    "LAMB": "clars.optim",
    "LARS": "clars.optim",
    "LayerStats": "clars.optim",
    "ExampleNorms": "clars.norms",
    "NoiseScale": "clars.norms",
    "bind": "clars.optim.bind",
    "graphed": "clars.graphs",
}
_MODULES = {"oracle": "clars.norms.oracle"} | {
    name: f"clars.{name}" for name in ("models", "norms", "optim", "sharding")
}


def __getattr__(name: str) -> object:
    if name in _PLACES:
        found = getattr(import_module(_PLACES[name]), name)
    elif name in _MODULES:
        found = import_module(_MODULES[name])
    elif name == "__version__":
        from importlib.metadata import version

        found = version("clars")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
