from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from clars.lab.models import SmallResNet


def parameters(blocks: int, classes: int, channels: int, width: int) -> int:
    """Weights of convolutions, two numbers for each channel of a BatchNorm, the last layer."""
    stem = 9 * channels * width + 2 * width
    sizes = (width, 2 * width, 4 * width)
    inner = sum((2 * blocks - 1) * (9 * size * size + 2 * size) for size in sizes)
    entries = sum(9 * old * new + 2 * new for old, new in zip((width, *sizes), sizes, strict=False))
    projections = sum(old * new + 2 * new for old, new in pairwise(sizes))
    return stem + inner + entries + projections + 4 * width * classes + classes


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3), ("resnet56", 9)])
@pytest.mark.parametrize(("classes", "channels", "width"), [(10, 1, 16), (100, 3, 8)])
def test_number_of_parameters(name, blocks, classes, channels, width):
    model = timm.create_model(name, num_classes=classes, in_chans=channels, width=width)
    assert count(model) == parameters(blocks, classes, channels, width)


def test_number_of_parameters_as_published_for_projection_shortcuts():
    assert count(timm.create_model("resnet20")) == 272_474
    assert count(timm.create_model("resnet56")) == 855_770


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet56", 56)])
def test_depth_counts_3x3_convolutions_and_the_last_layer(name, layers):
    modules = list(timm.create_model(name).modules())
    convolutions = [m for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == layers


def test_features_and_logits():
    model = timm.create_model("resnet8", num_classes=10, in_chans=1, width=16)
    x = torch.randn(2, 1, 8, 8)
    features = model.forward_features(x)
    assert features.shape == (2, 64, 2, 2)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model(x).shape == (2, 10)


def test_the_conventions_of_timm():
    model = timm.create_model("resnet8", num_classes=10)
    assert model.get_classifier() is model.fc and model.num_classes == 10
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert model.pretrained_cfg["classifier"] == "fc" and model.pretrained_cfg["input_size"] == (3, 32, 32)


def test_stages_as_a_feature_extractor():
    model = timm.create_model("resnet8", features_only=True, width=8)
    shapes = [tuple(feature.shape) for feature in model(torch.randn(2, 3, 32, 32))]
    assert shapes == [(2, 8, 32, 32), (2, 8, 32, 32), (2, 16, 16, 16), (2, 32, 8, 8)]
    assert model.feature_info.channels() == [8, 8, 16, 32]


def test_convolutions_start_as_he_et_al_propose():
    """Normal with variance 2 / (outputs of a filter position)."""
    torch.manual_seed(0)
    weight = timm.create_model("resnet8", width=32).layer3[0].conv2.weight
    assert abs(weight.std() / (2 / (128 * 9)) ** 0.5 - 1) < 0.02


def test_activations_and_additions_work_in_place():
    model = timm.create_model("resnet8")
    activations = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    assert len(activations) == 7 and all(activation.inplace for activation in activations)
    with torch.profiler.profile() as profile:
        model(torch.randn(2, 3, 32, 32))
    operations = {event.key: event.count for event in profile.key_averages()}
    assert operations["aten::add_"] >= 3 and "aten::add" not in operations


def test_every_parameter_gets_a_gradient_and_a_step_lowers_the_loss():
    torch.manual_seed(0)
    model = timm.create_model("resnet8", num_classes=4, in_chans=1, width=4).double()
    x, y = torch.randn(16, 1, 8, 8).double(), torch.randint(0, 4, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_the_shortcut_is_added():
    """With the residual branch silenced, a block passes on what it is given."""
    model = SmallResNet(blocks=2, width=4)
    block = model.layer1[1]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 8, 8)
    assert torch.equal(block(x.clone()), x)


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="width=0"):
        timm.create_model("resnet8", width=0)
