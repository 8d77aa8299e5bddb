"""Images in memory against those that are decoded for every batch."""

import pytest
import torch

from clars.lab.data import load
from clars.lab.data.images import EncodedImages
from clars.lab.data.memory import StoredImages, resize


@pytest.mark.parametrize("augmentation", ["none", "crop"])
@pytest.mark.parametrize("evaluation", ["test", "validation"])
@pytest.mark.parametrize("kind", ["mnist", "cifar", "photographs"])
def test_batches_are_bit_for_bit_those_of_decoded_images(request, kind, evaluation, augmentation):
    data = request.getfixturevalue(kind).model_copy(update={"augmentation": augmentation, "validation_fraction": 0.25})
    decoded, stored = (
        load(data.model_copy(update={"in_memory": here}), evaluation=evaluation) for here in (False, True)
    )
    assert isinstance(decoded.train, EncodedImages) and isinstance(stored.train, StoredImages)
    for one, other in ((decoded.train, stored.train), (decoded.test, stored.test)):
        one.place = other.place = (3, 1)
        for a, b in zip(one.__getitems__([1, 0, 1]), other.__getitems__([1, 0, 1])):
            assert torch.equal(a, b)


def test_a_stored_channel_is_repeated_and_the_store_is_left_as_it_is():
    pixels = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
    images = StoredImages(pixels.clone(), torch.arange(4), mean=[0.0, 0.5, 1.0], std=[1.0, 1.0, 2.0], crop=True)
    batch, labels = images.__getitems__([3, 1])
    assert batch.shape == (2, 3, 5, 5) and labels.tolist() == [3, 1] and torch.equal(images.pixels, pixels)


def test_a_size_of_its_own_is_left_alone_and_constants_stay():
    images = torch.full((2, 1, 8, 8), 7, dtype=torch.uint8)
    assert resize(images, 8) is images
    assert torch.equal(resize(images, 5), images[..., :5, :5])
