"""Per-example gradient norms of every layer, formed inside the model's own backward pass."""

from clars.norms.noise import NoiseScale
from clars.norms.tracker import ExampleNorms

__all__ = ["ExampleNorms", "NoiseScale"]
