"""Networks: every timm model; `fcn5`, `lenet5`, `resnet8`, `resnet20` and `resnet56` for small images among them."""

from clars.lab.models.factory import create
from clars.lab.models.plain import FullyConnected, LeNet
from clars.lab.models.small_resnet import SmallResNet

__all__ = ["FullyConnected", "LeNet", "SmallResNet", "create"]
