"""Draws of many examples at once against torch's own, one example after another."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import RandomCrop, RandomHorizontalFlip

from clars.lab import seeds
from clars.lab.data import draws, load
from clars.lab.data.memory import StoredImages

WORDS = st.integers(0, 2**32 - 1)


@given(st.lists(WORDS, max_size=3), st.lists(WORDS, min_size=1, max_size=5))
def test_seeds_are_those_of_single_places(place, numbers):
    expected = [seeds.derived(*place, number) for number in numbers]
    assert draws.seeds(place, np.array(numbers)).tolist() == expected


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_outputs_are_those_of_a_mersenne_twister(begun):
    """NumPy's `RandomState` is begun in the same way."""
    expected = [np.random.RandomState(seed).randint(0, 2**32, 5, np.uint32).tolist() for seed in begun]
    assert draws.outputs(np.array(begun, np.uint32), 5).tolist() == expected


def test_more_than_the_begun_state_tells_is_refused():
    assert draws.outputs(np.zeros(1, np.uint32), 227).shape == (1, 227)
    with pytest.raises(ValueError, match="228 draws"):
        draws.outputs(np.zeros(1, np.uint32), 228)


def test_windows_are_those_that_torchvision_cuts():
    """Bit for bit, for many examples; the place of the run decides, and the row in the split, not the batch."""
    pixels = torch.randint(256, (300, 2, 6, 6), dtype=torch.uint8)
    rows = torch.arange(300) * 7 + 5
    images = StoredImages(pixels, torch.zeros(300).long(), [0.4, 0.5], [0.2, 0.3], crop=True, rows=rows)
    images.place = (2**32 - 1, 3)
    order = torch.randperm(300)
    found = torch.cat([images.__getitems__(part)[0] for part in order.split(70)])
    crop, mirror = RandomCrop(6, padding=4), RandomHorizontalFlip()
    plain = (pixels / 255 - torch.tensor([0.4, 0.5]).view(-1, 1, 1)) / torch.tensor([0.2, 0.3]).view(-1, 1, 1)
    for image, number in zip(found, order.tolist()):
        seeds.seed_example(2**32 - 1, 3, int(rows[number]))
        assert torch.equal(image, mirror(crop(plain[number])))
    images.place = (2**32 - 1, 4)
    assert not torch.equal(images.__getitems__(order)[0], found)


def test_without_a_place_they_follow_from_torch_s_seed(cifar):
    images = load(cifar.model_copy(update={"in_memory": True, "augmentation": "crop"}), evaluation="test").train

    def drawn(seed):
        torch.manual_seed(seed)
        return images.__getitems__(range(40))[0]

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
