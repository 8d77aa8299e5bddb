"""Networks without shortcuts or normalisation, registered in timm: `fcn5` and `lenet5`.

Hidden weights start as He et al. 2015 propose for ReLU (arXiv 1502.01852), hidden biases at zero.
"""

import math
from collections import OrderedDict

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

Size = int | tuple[int, int]


class PlainNetwork(nn.Module):
    """`features` and one linear layer: [n, in_chans, img_size, img_size] float -> [n, num_classes] logits.

    With num_classes=0: [n, num_features].
    """

    def __init__(self, features: nn.Module, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.num_features = self.head_hidden_size = num_features
        self.reset_classifier(num_classes)
        for module in features.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one for `num_classes` classes, or by nothing for 0."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in_chans, img_size, img_size] -> [n, num_features]."""
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """[n, num_features] -> [n, num_classes], or unchanged with `pre_logits`."""
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


class FullyConnected(PlainNetwork):
    """`depth` linear layers with ReLU between them, the hidden ones `width` wide."""

    def __init__(
        self, depth: int, num_classes: int = 10, in_chans: int = 1, img_size: Size = 28, width: int = 256
    ) -> None:
        if width < 1:
            raise ValueError(f"width={width} must be 1 or more")
        layers = OrderedDict(flatten=nn.Flatten())
        inputs = in_chans * math.prod(to_2tuple(img_size))
        for number in range(1, depth):
            layers[f"fc{number}"] = nn.Linear(inputs, width)
            layers[f"act{number}"] = nn.ReLU(inplace=True)
            inputs = width
        super().__init__(nn.Sequential(layers), width, num_classes)


class LeNet(PlainNetwork):
    """LeNet-5: two 5x5 convolutions and three linear layers, with ReLU and maximum pooling.

    Layout: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II B. There every
    map of the second convolution sees some of the first's only; here all, as has become usual. As there, smaller
    images are padded to 32 pixels.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 1, img_size: Size = 28) -> None:
        sides = to_2tuple(img_size)
        padding = tuple(max(0, 32 - side + 1) // 2 for side in sides)
        positions = math.prod(((side + 2 * margin - 4) // 2 - 4) // 2 for side, margin in zip(sides, padding))
        layers = OrderedDict(
            conv1=nn.Conv2d(in_chans, 6, 5, padding=padding),
            act1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            act2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * positions, 120),
            act3=nn.ReLU(inplace=True),
            fc2=nn.Linear(120, 84),
            act4=nn.ReLU(inplace=True),
        )
        super().__init__(nn.Sequential(layers), 84, num_classes)


_CFG = {
    "url": "",
    "num_classes": 10,
    "input_size": (1, 28, 28),
    "fixed_input_size": True,
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": (0.5,),
    "std": (0.5,),
    "classifier": "fc",
}
default_cfgs = generate_default_cfgs(
    {"fcn5": _CFG | {"first_conv": None}, "lenet5": _CFG | {"first_conv": "features.conv1"}}
)


@register_model
def fcn5(pretrained: bool = False, **kwargs) -> nn.Module:
    """Five fully connected layers."""
    return build_model_with_cfg(FullyConnected, "fcn5", pretrained, depth=5, **kwargs)


@register_model
def lenet5(pretrained: bool = False, **kwargs) -> nn.Module:
    """LeNet-5."""
    return build_model_with_cfg(LeNet, "lenet5", pretrained, **kwargs)
