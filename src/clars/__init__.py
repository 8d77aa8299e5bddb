"""CLARS: complete layer-wise adaptive rate scaling, for large-batch training without warmup."""

from clars.errors import UnsupportedLayerError, UserError
from clars.layers import Layer, layers
from clars.norms import ExampleNorms, oracle
from clars.optim import CLARS, LARS, LayerStats

__all__ = [
    "CLARS",
    "LARS",
    "ExampleNorms",
    "Layer",
    "LayerStats",
    "UnsupportedLayerError",
    "UserError",
    "layers",
    "oracle",
]
