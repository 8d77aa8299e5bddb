"""The small networks under their public name; they are those of `clars.lab.models`, which adds them to timm's."""

from clars import extras

_lab = extras.lab("clars.lab.models", "clars.models")
create, FullyConnected, LeNet, SmallResNet = _lab.create, _lab.FullyConnected, _lab.LeNet, _lab.SmallResNet

__all__ = ["FullyConnected", "LeNet", "SmallResNet", "create"]
