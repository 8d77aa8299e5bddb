"""The small networks under their public name: the module is `clars.lab.models`, which adds them to those of timm."""

import sys

from clars import extras

sys.modules[__name__] = extras.lab("clars.lab.models", "clars.models")
