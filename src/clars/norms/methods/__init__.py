"""The exact methods for the weights of linear layers and convolutions, a file and an object each.

This list is all that knows them. Of methods with equal estimates the first is taken.
"""

from clars.norms.methods.depthwise import Depthwise
from clars.norms.methods.direct import Direct
from clars.norms.methods.each import Each
from clars.norms.methods.fused import Fused, Squared
from clars.norms.methods.gram import Gram
from clars.norms.methods.grouped import Grouped
from clars.norms.methods.matrix import Matrix
from clars.norms.methods.method import Method
from clars.norms.methods.ordinary import Ordinary
from clars.norms.methods.tiled import Tiled

METHODS: list[Method] = [
    Grouped(),
    Tiled(),
    Direct(),
    Each(),
    Matrix(),
    Gram(),
    Ordinary(),
    Fused(),
    Squared(),
    Depthwise(),
]
