"""Layer-wise optimizers and the rate schedule."""

from clars.optim.clars import CLARS
from clars.optim.lamb import LAMB
from clars.optim.lars import LARS
from clars.optim.layerwise import LayerStats

__all__ = ["CLARS", "LAMB", "LARS", "LayerStats"]
