"""Networks of many kinds on small pictures, and what the processor says in float64 about a batch of theirs."""

import copy
from functools import cache
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clars

PIXELS, EXAMPLES, CLASSES = 64, 8, 10


class Uses(nn.Module):
    """Calls a function with itself and the input; what it holds is given by name."""

    def __init__(self, function, **held):
        super().__init__()
        self.function = function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, x)


class Volume(nn.Module):
    """Convolutions in one and in three dimensions, with a picture's rows, or its channels, as the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Conv1d(3 * PIXELS, 16, 5, padding=2), nn.BatchNorm1d(16), nn.GELU())
        self.room = nn.Sequential(nn.Conv3d(1, 6, 3, (1, 2, 2), 1), nn.GroupNorm(2, 6), nn.GELU())
        self.head = nn.Linear(16 + 6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        line, room = self.line(x.flatten(1, 2)), self.room(x.unsqueeze(1))
        return self.head(torch.cat([line.mean(2), room.flatten(2).mean(2)], 1))


def with_group_norm() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1), nn.GroupNorm(4, 16), nn.GELU()),
        *(nn.Conv2d(16, 32, 3, 2, 1, groups=2), nn.GroupNorm(1, 32), nn.GELU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, CLASSES)),
    )


def with_large_depthwise() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 4, 4), nn.Conv2d(24, 24, 7, padding=3, groups=24), nn.BatchNorm2d(24), nn.GELU()),
        *(nn.Conv2d(24, 24, 7, 2, padding=9, dilation=3, groups=24), nn.Conv2d(24, 48, 1), nn.GELU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48 * 4, CLASSES)),
    )


OF_TIMM = {
    "resnet18": {"zero_init_last": False},
    "resnet50": {"zero_init_last": False},
    "densenet121": {},
    "mobilenetv2_100": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": PIXELS},
    "regnetx_002": {},
    "resnext50_32x4d": {"zero_init_last": False},
}
OWN = {"group norm": with_group_norm, "depthwise 7x7": with_large_depthwise, "1D and 3D": Volume}
NETWORKS = (*OF_TIMM, *OWN)


class Said(NamedTuple):
    """S_k by layer, and the gradient of each layer as a vector, in float64 on the processor."""

    sums: dict[str, Tensor]
    gradients: dict[str, Tensor]


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return OWN[name]() if name in OWN else timm.create_model(name, num_classes=CLASSES, **OF_TIMM[name])


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLES, 3, PIXELS, PIXELS, generator=generator), torch.arange(EXAMPLES) % CLASSES


@cache
def exactly(name: str) -> Said:
    x, y = batch()
    return said(make(name).double(), x.double(), y)


def said(model: nn.Module, x: Tensor, y: Tensor, autocast: torch.dtype | None = None) -> Said:
    """Return what a backward pass says, brought to the processor in float64."""
    norms = clars.ExampleNorms(model)
    with torch.autocast(x.device.type, autocast, enabled=autocast is not None):
        loss = F.cross_entropy(model(x).to(torch.promote_types(x.dtype, torch.float32)), y)
    loss.backward()
    sums = {layer: value.cpu().double() for layer, value in norms.sums().items()}
    norms.remove()
    return Said(sums, {layer.name: _gradient(layer) for layer in clars.layers(model)})


def errors(found: Said, expected: Said) -> dict[str, tuple[float, float]]:
    """Return by layer the relative errors of S_k, and of the gradient."""
    return {
        layer: (_relative(found.sums[layer], total), _relative(found.gradients[layer], expected.gradients[layer]))
        for layer, total in expected.sums.items()
    }


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm())


def placed(name: str, device: str, dtype: torch.dtype, memory_format: torch.memory_format):
    """Return a network and its batch as they are wanted."""
    x, y = batch()
    model = copy.deepcopy(make(name)).to(device, dtype, memory_format=memory_format)
    return model, x.to(device, dtype, memory_format=memory_format), y.to(device)


def _gradient(layer: clars.Layer) -> Tensor:
    return torch.cat([parameter.grad.flatten().cpu().double() for parameter in layer.parameters.values()])
