"""Whole timm models in float64 against the mask oracle; those without batch statistics against vmap as well."""

import pytest
import timm
import torch
from conftest import assert_exact, backward_sums
from torch.nn import functional as F

import clars

MODELS = {
    "resnet18": {"zero_init_last": False},
    "resnet50": {"zero_init_last": False},
    "densenet121": {},
    "mobilenetv2_100": {},
    "efficientnet_b0": {},
    "tf_efficientnet_b0": {},  # 'same' padding by a subclass of Conv2d
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 32},
}
WITHOUT_BATCH_STATISTICS = ["convnext_atto", "vit_tiny_patch16_224"]


def create(name):
    return timm.create_model(name, num_classes=10, **MODELS[name]).double()


def loss_fn(model, x, y):
    return F.cross_entropy(model(x), y)


@pytest.fixture
def batch():
    return torch.randn(3, 3, 32, 32, dtype=torch.double), torch.arange(3)


@pytest.mark.parametrize("name", MODELS)
def test_in_training_mode(name, batch):
    sums = assert_exact(create(name).train(), loss_fn, *batch)
    assert all(value > 0 for name, value in sums.items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_batch_norm_in_evaluation_mode(name, batch):
    assert_exact(create(name).eval(), loss_fn, *batch)


@pytest.mark.parametrize("name", WITHOUT_BATCH_STATISTICS)
def test_against_vmap(name, batch):
    model = create(name).eval()  # no dropped paths: vmap draws its own
    sums, _ = backward_sums(model, loss_fn, *batch)
    expected = clars.oracle.vmap_norms(model, F.cross_entropy, *batch)
    torch.testing.assert_close(sums, expected, rtol=1e-9, atol=0)


def test_a_layer_with_zero_weights_is_among_them(batch):
    """timm starts the last BatchNorm of a residual block at zero; its norms are exact nevertheless."""
    model = timm.create_model("resnet18", num_classes=10).double()
    assert not model.layer1[0].bn2.weight.any()
    assert assert_exact(model, loss_fn, *batch)["layer1.0.bn2"] > 0


def test_loose_parameters_are_layers_of_their_own():
    names = [layer.name for layer in clars.layers(create("vit_tiny_patch16_224"))]
    assert {"cls_token", "pos_embed"} <= set(names)
    assert "stages.0.blocks.0.gamma" in [layer.name for layer in clars.layers(create("convnext_atto"))]
