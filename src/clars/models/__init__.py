"""Networks: every timm model, with `resnet8`, `resnet20` and `resnet56` for small images among them."""

from clars.models.factory import create
from clars.models.small_resnet import SmallResNet

__all__ = ["SmallResNet", "create"]
