import random

import pytest
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torchvision.transforms.functional import pil_to_tensor

from clars.lab.data import collate, load, transforms
from clars.lab.recipes.schema import Data


def settings(**changes) -> Data:
    return Data(**{"name": "any", "image_size": 16, **changes})


def gradient(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


@pytest.mark.parametrize("augmentation", ["none", "crop", "imagenet"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (40, 25)])
def test_shape(augmentation, training, size):
    tensor = transforms.build(settings(augmentation=augmentation), training)(gradient(*size))
    assert tensor.shape == (3, 16, 16) and tensor.dtype == torch.float32


@pytest.mark.parametrize("training", [True, False])
def test_without_augmentation_an_image_of_the_right_size_is_only_normalised(training):
    image = gradient(16, 16)
    mean, std = torch.tensor(IMAGENET_DEFAULT_MEAN), torch.tensor(IMAGENET_DEFAULT_STD)
    expected = (pil_to_tensor(image) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(transforms.build(settings(), training)(image), expected, atol=1e-6)


def test_grey_images_are_normalised_to_the_range_from_minus_1_to_1():
    tensor = transforms.build(settings(channels=1), training=False)(Image.linear_gradient("L").resize((16, 16)))
    assert tensor.shape == (1, 16, 16) and -1 <= tensor.min() < -0.9 and 0.9 < tensor.max() <= 1


def test_crop_moves_by_up_to_4_pixels_and_mirrors_in_training_only():
    data = settings(augmentation="crop", mean=[0.0] * 3, std=[1.0] * 3)
    image = gradient(16, 16)
    pixels = pil_to_tensor(image) / 255
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    windows = [padded[:, y : y + 16, x : x + 16] for y in range(9) for x in range(9)]
    allowed = windows + [window.flip(-1) for window in windows]
    torch.manual_seed(0)
    drawn = [transforms.build(data, training=True)(image) for _ in range(20)]
    assert all(any(torch.allclose(one, other) for other in allowed) for one in drawn)
    assert any(not torch.allclose(one, drawn[0]) for one in drawn)
    assert torch.allclose(transforms.build(data, training=False)(image), pixels)


def test_imagenet_evaluation_cuts_the_centre_of_a_larger_image():
    """The shorter side becomes 256 for images of 224 pixels."""
    data = settings(augmentation="imagenet", image_size=224, mean=[0.0] * 3, std=[1.0] * 3)
    image = gradient(300, 256)
    expected = (pil_to_tensor(image) / 255)[:, 16:240, 38:262]
    assert torch.allclose(transforms.build(data, training=False)(image), expected, atol=1e-6)


def test_imagenet_training_crops_and_mirrors_but_leaves_colours_alone():
    data = settings(augmentation="imagenet", mean=[0.0] * 3, std=[1.0] * 3)
    drawn = transforms.build(data, training=True)(Image.new("RGB", (40, 30), (51, 102, 204)))
    assert torch.allclose(drawn, torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1).expand(3, 16, 16))
    image = gradient(40, 30)
    one, other = (transforms.build(data, training=True)(image) for _ in range(2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("augmentation", ["crop", "imagenet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_random_choices_follow_the_seeds(cifar, augmentation, workers):
    images = load(cifar.model_copy(update={"augmentation": augmentation}), evaluation="test").train
    batches = BatchSampler(SequentialSampler(images), batch_size=8, drop_last=False)

    def epoch(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        random.seed(seed)
        loader = DataLoader(images, batch_sampler=batches, collate_fn=collate, num_workers=workers)
        return torch.cat([batch for batch, _ in loader])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
