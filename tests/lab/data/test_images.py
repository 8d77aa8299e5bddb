"""Batches through a DataLoader, and images that cannot be decoded."""

import traceback
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from clars.errors import DataError
from clars.lab.data import UnreadableImageError, collate, load


def loader(images, workers: int = 0) -> DataLoader:
    batches = BatchSampler(SequentialSampler(images), batch_size=16, drop_last=False)
    return DataLoader(images, batch_sampler=batches, collate_fn=collate, num_workers=workers)


def spoil(data, row: int, content: bytes | None) -> None:
    """Replace the bytes of one training image."""
    path = Path(data.path) / "data" / "train-00000-of-00001.parquet"
    split = datasets.Dataset.from_parquet(str(path), cache_dir=path.parents[2] / "spoil")
    split = split.cast_column("image", datasets.Image(decode=False))
    rows = split.to_list()
    rows[row]["image"] = None if content is None else {"bytes": content, "path": None}
    datasets.Dataset.from_list(rows, features=split.features).to_parquet(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_hands_out_whole_batches(mnist, workers):
    images = load(mnist, evaluation="test").train
    batches = list(loader(images, workers))
    assert [batch.shape for batch, _ in batches] == [(16, 1, 28, 28), (16, 1, 28, 28), (8, 1, 28, 28)]
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert torch.equal(batches[1][0][3], images[19][0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"no image at all", b"", None])
def test_an_unreadable_cell_is_named_by_row_and_split(mnist, workers, content):
    spoil(mnist, 18, content)
    with pytest.raises(UnreadableImageError) as caught:
        list(loader(load(mnist, evaluation="test").train, workers))
    # Lets go of the loader's workers now; torch waits for those that the garbage collector finds.
    traceback.clear_frames(caught.tb)
    assert str(caught.value).startswith("row 18 of split 'train': the image cannot be decoded")
    assert "Traceback" not in str(caught.value) and isinstance(caught.value, DataError)


def test_the_row_of_a_held_out_image_is_its_row_in_the_file(mnist):
    data = mnist.model_copy(update={"validation_fraction": 0.25})
    row = int(load(data, evaluation="validation").test.rows[7])
    spoil(mnist, row, b"no image at all")
    with pytest.raises(UnreadableImageError, match=rf"^row {row} of split 'train'"):
        load(data, evaluation="validation").test[7]


def test_a_truncated_file_is_named_by_its_path(photographs):
    path = Path(photographs.path) / "train" / "n01443537" / "n01443537_2.JPEG"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UnreadableImageError, match=r"n01443537_2.JPEG: the image cannot be decoded"):
        list(loader(load(photographs, evaluation="test").train))
