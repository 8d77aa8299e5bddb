import subprocess
import sys

import pytest
import timm
import torch

from clars.errors import RecipeError
from clars.lab.models import create
from clars.lab.recipes.schema import Model


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("resnet8", 1, 8),
        ("resnet18", 1, 32),
        ("mobilenetv2_100", 3, 32),
        ("vit_tiny_patch16_224", 3, 64),
        ("vit_tiny_patch16_224.augreg_in21k", 1, 32),
        ("swin_tiny_patch4_window7_224", 3, 64),
    ],
)
def test_models_take_the_images_of_the_data_set(name, channels, size):
    model = create(Model(name=name), num_classes=5, channels=channels, image_size=size).eval()
    with torch.no_grad():
        assert model(torch.randn(2, channels, size, size)).shape == (2, 5)


def test_arguments_reach_the_model():
    model = create(Model(name="resnet8", arguments={"width": 4}), num_classes=10, channels=1, image_size=8)
    assert model.num_features == 16


def test_unknown_names_are_met_with_near_ones():
    with pytest.raises(RecipeError, match=r"model.name='resnet81' is no timm model. Did you mean .*'resnet8'"):
        create(Model(name="resnet81"), 10, 3, 32)


@pytest.mark.parametrize("name", ["timm/resnet50", "hf-hub:timm/resnet50", ""])
def test_addresses_are_no_names(name):
    with pytest.raises(RecipeError, match="is no timm model"):
        create(Model(name=name), 10, 3, 32)


def test_unknown_tags_are_refused():
    with pytest.raises(RecipeError, match=r"model.name='resnet18.nowhere': Invalid pretrained tag"):
        create(Model(name="resnet18.nowhere"), 10, 3, 32)


@pytest.mark.parametrize("arguments", [{"wdth": 4}, {"width": "wide"}, {"width": 0}, {"width": -1}])
def test_bad_arguments_are_named(arguments):
    (argument,) = (f"{key}={value!r}" for key, value in arguments.items())
    with pytest.raises(RecipeError, match=f"model.name='resnet8' cannot be built with .*{argument}"):
        create(Model(name="resnet8", arguments=arguments), 10, 3, 32)


@pytest.mark.parametrize("key", ["num_classes", "in_chans", "img_size"])
def test_what_follows_from_the_data_cannot_be_set(key):
    with pytest.raises(RecipeError, match=f"model.arguments: {key} cannot be set here"):
        create(Model(name="resnet8", arguments={key: 3}), 10, 3, 32)


def test_the_small_networks_hide_none_of_timm_s_own():
    names = timm.list_models(module="plain") + timm.list_models(module="small_resnet")
    assert names == ["fcn5", "lenet5", "resnet8", "resnet20", "resnet56"]
    code = f"import timm; print([name for name in {names} if timm.is_model(name)])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
