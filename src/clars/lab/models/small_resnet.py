"""Residual networks for small images, registered in timm: 6n+2 layers in three stages.

Source: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2. Where the shape changes,
the shortcut is a 1x1 convolution with BatchNorm (option B there).
"""

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn


def _conv_norm(in_chans: int, out_chans: int, kernel_size: int, stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_chans, out_chans, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_chans)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [n, in_chans, h, w] -> [n, out_chans, h / stride, w / stride]."""

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(in_chans, out_chans, 3, stride)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv_norm(out_chans, out_chans, 3, 1)
        self.act2 = nn.ReLU(inplace=True)
        same_shape = stride == 1 and in_chans == out_chans
        self.downsample = nn.Identity() if same_shape else nn.Sequential(*_conv_norm(in_chans, out_chans, 1, stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = self.downsample(x)
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.act2(out)


def _stage(blocks: int, in_chans: int, out_chans: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_chans, out_chans, stride)
    return nn.Sequential(first, *(BasicBlock(out_chans, out_chans, 1) for _ in range(blocks - 1)))


class SmallResNet(nn.Module):
    """Three stages of `blocks` basic blocks with `width`, 2 and 4 times `width` channels, after a 3x3 stem.

    [n, in_chans, h, w] float -> [n, num_classes] logits. With num_classes=0: [n, 4 * width] pooled features.
    """

    def __init__(self, blocks: int, num_classes: int = 10, in_chans: int = 3, width: int = 16) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width={width} must be 1 or more")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 4 * width
        self.feature_info = [
            {"num_chs": channels, "reduction": reduction, "module": module}
            for channels, reduction, module in [
                (width, 1, "act1"),
                (width, 1, "layer1"),
                (2 * width, 2, "layer2"),
                (4 * width, 4, "layer3"),
            ]
        ]
        self.conv1, self.bn1 = _conv_norm(in_chans, width, 3, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _stage(blocks, width, width, 1)
        self.layer2 = _stage(blocks, width, 2 * width, 2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, 2)
        self.global_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one for `num_classes` classes, or by nothing for 0."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """[n, in_chans, h, w] -> [n, 4 * width, h / 4, w / 4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """[n, 4 * width, h, w] -> [n, num_classes], or [n, 4 * width] with `pre_logits`."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


_CFG = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "conv1",
    "classifier": "fc",
}
default_cfgs = generate_default_cfgs({name: _CFG for name in ("resnet8", "resnet20", "resnet56")})


def _create(variant: str, pretrained: bool, blocks: int, **kwargs) -> nn.Module:
    feature_cfg = {"out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(SmallResNet, variant, pretrained, feature_cfg=feature_cfg, blocks=blocks, **kwargs)


@register_model
def resnet8(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-8: one block a stage."""
    return _create("resnet8", pretrained, blocks=1, **kwargs)


@register_model
def resnet20(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-20: three blocks a stage."""
    return _create("resnet20", pretrained, blocks=3, **kwargs)


@register_model
def resnet56(pretrained: bool = False, **kwargs) -> nn.Module:
    """ResNet-56: nine blocks a stage."""
    return _create("resnet56", pretrained, blocks=9, **kwargs)
