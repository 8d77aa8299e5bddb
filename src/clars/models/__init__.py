"""Networks: every timm model; `fcn5`, `lenet5`, `resnet8`, `resnet20` and `resnet56` for small images among them."""

from clars.models.factory import create
from clars.models.plain import FullyConnected, LeNet
from clars.models.small_resnet import SmallResNet

__all__ = ["FullyConnected", "LeNet", "SmallResNet", "create"]
