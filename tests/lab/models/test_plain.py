from itertools import pairwise

import pytest
import timm
import torch
from conftest import assert_exact
from losses import squared_loss
from torch import nn

from clars.lab.models import create
from clars.lab.recipes.schema import Model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("size", "channels", "classes", "width"), [(28, 1, 10, 256), (32, 3, 100, 64), (8, 1, 10, 32)])
def test_fcn5_has_five_linear_layers(size, channels, classes, width):
    model = timm.create_model("fcn5", num_classes=classes, in_chans=channels, img_size=size, width=width)
    sizes = [channels * size**2, *[width] * 4, classes]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(sizes))
    assert [layer.bias is not None for layer in linear] == [True] * 5
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 1), (28, 3), (8, 1)])
def test_lenet5_has_the_published_number_of_parameters(size, channels):
    """61,706 for one channel, with every map of the second convolution connected to all of the first."""
    model = timm.create_model("lenet5", in_chans=channels, img_size=size)
    assert count(model) == 61_706 + 150 * (channels - 1)
    assert model.features[:6](torch.randn(2, channels, size, size)).shape == (2, 16, 5, 5)


@pytest.mark.parametrize("name", ["fcn5", "lenet5"])
def test_the_image_size_follows_from_the_data(name):
    model = create(Model(name=name), num_classes=36, channels=3, image_size=40)
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 36)


@pytest.mark.parametrize("name", ["fcn5", "lenet5"])
def test_the_conventions_of_timm(name):
    model = timm.create_model(name, num_classes=3)
    x = torch.randn(2, 1, 28, 28)
    assert model.get_classifier() is model.fc and model.pretrained_cfg["classifier"] == "fc"
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features) and model.num_classes == 0


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="width=0"):
        timm.create_model("fcn5", width=0)


@pytest.mark.parametrize("name", ["fcn5", "lenet5"])
def test_hidden_layers_start_as_he_et_al_propose(name):
    """Weights with variance 2 / inputs, zero biases; within five standard errors of a normal sample's deviation."""
    for module in timm.create_model(name).features:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs, number = module.weight[0].numel(), module.weight.numel()
            assert abs(module.weight.std() / (2 / inputs) ** 0.5 - 1) < 5 / (2 * number) ** 0.5
            assert not module.bias.any()


@pytest.mark.parametrize(("name", "size"), [("fcn5", 12), ("lenet5", 28), ("resnet20", 8), ("resnet56", 8)])
def test_norms_are_exact(name, size):
    arguments = {"img_size": size} if name in ("fcn5", "lenet5") else {"width": 2}
    model = timm.create_model(name, num_classes=3, in_chans=1, **arguments).double()
    assert_exact(model, squared_loss, torch.randn(4, 1, size, size).double())
