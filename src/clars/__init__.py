"""CLARS: complete layer-wise adaptive rate scaling, for large-batch training without warmup."""

from importlib.metadata import version

import clars.models  # noqa: F401  registers the small networks with timm
from clars.checkpoints import load
from clars.errors import UnsupportedLayerError, UserError
from clars.layers import Layer, layers
from clars.norms import ExampleNorms, oracle
from clars.optim import CLARS, LARS, LayerStats
from clars.sharding.bind import bind

__version__ = version("clars")

__all__ = [
    "CLARS",
    "LARS",
    "ExampleNorms",
    "Layer",
    "LayerStats",
    "UnsupportedLayerError",
    "UserError",
    "bind",
    "layers",
    "load",
    "oracle",
]
