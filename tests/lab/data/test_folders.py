"""Which files of a folder are trained on, which are tested on, and which class each is of."""

import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from clars.errors import DataError
from clars.lab.data import load
from clars.lab.recipes.schema import Data


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "folder"


def put(folder: Path, *names: str) -> None:
    """Write pictures, each of one grey: the number of its name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        grey = int("".join(filter(str.isdigit, Path(name).stem)))
        Image.fromarray(np.full((4, 4), grey, np.uint8)).save(folder / name)


def table(folder: Path, name: str, greys: list[int], labels: list[int], classes: list[str] | None) -> Path:
    """Write a parquet or arrow file of such pictures."""
    label = datasets.ClassLabel(names=classes) if classes else datasets.Value("int64")
    pictures = [Image.fromarray(np.full((4, 4), grey, np.uint8)) for grey in greys]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    split = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        split.to_parquet(path)
    else:
        split.save_to_disk(str(path.with_suffix("")))
        shutil.copy(path.with_suffix("") / "data-00000-of-00001.arrow", path)
        shutil.rmtree(path.with_suffix(""))
    return path


def recipe(folder: Path, way: dict | None = None, **changes) -> Data:
    plain = {"name": "mine", "path": str(folder), "image_size": 4, "channels": 1, "mean": [0.0], "std": [1.0]}
    return Data(**(plain | (way or {}) | changes))


def seen(images, names: tuple[str, ...] | None) -> list[tuple[int, object]]:
    """Return the grey and the class of every image."""
    items = list(images.items())
    pixels, labels = images.__getitems__(items) if items else (torch.empty(0, 1, 1, 1), torch.empty(0))
    greys = (pixels[:, 0, 0, 0] * 255).round().int().tolist()
    return sorted((grey, names[label] if names else label) for grey, label in zip(greys, labels.tolist()))


def both(data: Data) -> tuple[list, list]:
    splits = load(data, evaluation="test")
    return tuple(seen(images, splits.class_names) for images in (splits.train, splits.test))


ways = pytest.mark.parametrize("way", [{}, {"streaming": True, "train_examples": 4}], ids=["whole", "streamed"])


@ways
@pytest.mark.parametrize(
    "words", [("train", "test"), ("test_tube", "train"), ("validation", "eval"), ("data", "training-set")], ids="/".join
)
def test_a_class_may_have_the_name_of_a_split(folder, way, words):
    """`test/train/0.png` was trained on and tested on, for the word in its path."""
    one, other = words
    put(folder, f"train/{one}/1.png", f"train/{other}/2.png", f"train/{one}/test3.png", f"train/{other}/train4.png")
    put(folder, f"test/{one}/11.png", f"test/{other}/12.png", f"test/{one}/train13.png")
    train, test = both(recipe(folder, way))
    assert train == [(1, one), (2, other), (3, one), (4, other)]
    assert test == [(11, one), (12, other), (13, one)]


@ways
def test_a_folder_in_folders_of_such_names(tmp_path, way):
    """Words in the path that leads to the data said what it was, too; and `*` and `[1]` in names are no patterns."""
    folder = tmp_path / "test" / "train-[1]*"
    put(folder, "train/a/1.png", "train/b/[2].png", "train/b/*3.png", "train/a/4.png", "test/a/11.png")
    assert both(recipe(folder, way)) == ([(1, "a"), (2, "b"), (3, "b"), (4, "a")], [(11, "a")])


@ways
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_files_are_of_the_split_whose_name_they_begin_with(tmp_path, way, ending):
    """A file of the test split was trained on where its path held the word."""
    folder = tmp_path / "train"
    table(folder, f"data/train-00000-of-00002.{ending}", [1, 2], [0, 1], ["a", "b"])
    table(folder, f"data/train-00001-of-00002.{ending}", [3, 4], [0, 1], ["a", "b"])
    table(folder, f"data/test-train[0].{ending}", [11], [1], ["a", "b"])
    assert both(recipe(folder, way)) == ([(1, "a"), (2, "b"), (3, "a"), (4, "b")], [(11, "b")])


@ways
def test_classes_are_matched_by_name(folder, way):
    """Number 0 of the test split was taken for number 0 of the training split, whatever their names."""
    table(folder, "train.parquet", [1, 2, 3, 4], [0, 1, 2, 0], ["cat", "dog", "eel"])
    table(folder, "test.parquet", [11, 12, 13], [0, 1, 1], ["eel", "cat", "yak"])
    train, test = both(recipe(folder, way))
    assert train == [(1, "cat"), (2, "dog"), (3, "eel"), (4, "cat")]
    assert test == [(11, "eel"), (12, "cat"), (13, "cat")]


@ways
def test_folders_of_classes_that_the_test_split_lacks(folder, way):
    """Each split is read by itself, and by itself `eel` is number 0 of the test split."""
    put(folder, "train/cat/1.png", "train/dog/2.png", "train/eel/3.png", "train/eel/4.png", "test/eel/11.png")
    assert both(recipe(folder, way))[1] == [(11, "eel")]


@ways
@pytest.mark.parametrize("kind", ["folders", "files"])
def test_a_class_that_training_does_not_have_is_named(folder, way, kind):
    if kind == "folders":
        put(folder, "train/cat/1.png", "train/eel/2.png", "test/yak/11.png", "test/cat/12.png")
    else:
        table(folder, "train.parquet", [1, 2], [0, 1], ["cat", "eel"])
        table(folder, "test.parquet", [11, 12], [1, 0], ["cat", "yak"])
    with pytest.raises(DataError, match=r"split 'test'.* 'yak'|'yak'.*split 'test'"):
        both(recipe(folder, way))


@ways
@pytest.mark.parametrize("named", ["train", "test"])
def test_names_in_one_split_and_numbers_in_the_other_are_refused(folder, way, named):
    for split in ("train", "test"):
        table(folder, f"{split}.parquet", [1, 2], [0, 1], ["cat", "dog"] if split == named else None)
    with pytest.raises(DataError, match=r"label.*(have names in split|have no names in the data set)"):
        both(recipe(folder, way))


@ways
def test_files_of_a_split_must_number_classes_alike(folder, way):
    """The names of the first file were read into the numbers of all."""
    table(folder, "train-00000-of-00002.parquet", [1], [0], ["cat", "dog"])
    table(folder, "train-00001-of-00002.parquet", [2], [0], ["dog", "cat"])
    table(folder, "test.parquet", [11], [0], ["cat", "dog"])
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet', class 0 is 'dog', and 'cat' by"):
        both(recipe(folder, way))


@ways
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/cat/1.png", "train/b/cat/2.png"], r"'train' .*not in a folder of a class, such as '.*a/cat/1.png'"),
        (["train/1.png", "train/cat/2.png"], r"not in a folder of a class, such as '.*train/1.png'"),
        (["data/train/cat/1.png", "train/cat/2.png"], "split 'train' .* is in several places"),
    ],
)
def test_folders_that_would_merge_are_refused(folder, way, names, message):
    """`a/cat` and `b/cat` were one class."""
    put(folder, *names, "test/cat/11.png")
    with pytest.raises(DataError, match=message):
        both(recipe(folder, way))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_from_the_test_split_into_the_training_split_is_refused(folder, link):
    put(folder, "train/cat/1.png", "test/cat/11.png")
    link(folder / "train/cat/1.png", folder / "test/cat/2.png")
    with pytest.raises(DataError, match=r"test/cat/2.png' of split 'test' is the file '.*train/cat/1.png'"):
        both(recipe(folder))


def test_links_to_folders_are_followed_but_not_in_circles(folder):
    put(folder, "elsewhere/1.png", "train/dog/2.png", "test/cat/11.png")
    (folder / "train/cat").symlink_to(folder / "elsewhere")
    (folder / "elsewhere/again").symlink_to(folder / "elsewhere")
    assert both(recipe(folder))[0] == [(1, "cat"), (2, "dog")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "2 of 3 files; number 1 is missing"),
        (["train-00000-of-00001.parquet", "train.parquet"], "may be there twice"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "may be there twice"),
        (["train.parquet", "data/train-00000-of-00001.parquet"], "may be there twice"),
        (["train.parquet", "train.arrow"], "several kinds|may be there twice"),
    ],
)
def test_a_split_that_is_not_whole_or_there_twice_is_refused(folder, files, message):
    for name in (*files, "test.parquet"):
        table(folder, name, [1], [0], ["cat"])
    with pytest.raises(DataError, match=message):
        both(recipe(folder))


@ways
@pytest.mark.parametrize("name", [b"train/cat/\xe9t\xe91.png", b"train/\xe9/1.png"])
def test_a_name_in_another_encoding_is_told(folder, way, name):
    """The message was that of a codec, without the name; a stream took it."""
    put(folder, "train/cat/1.png", "test/cat/11.png")
    try:
        (folder / "train/cat/1.png").rename(_made(folder, name))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    with pytest.raises(DataError, match=r"the name '.*\\udce9.*1.png' is not in UTF-8. Rename it") as error:
        both(recipe(folder, way))
    assert str(error.value).isprintable()


def _made(folder: Path, name: bytes) -> Path:
    path = folder / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    return path


def test_an_archive_is_not_left_out_in_silence(folder):
    put(folder, "train/cat/1.png", "test/cat/11.png")
    shutil.make_archive(str(folder / "train/cat/more"), "zip", folder / "test")
    with pytest.raises(DataError, match=r"holds the archive '.*more.zip', which is not read. Unpack it"):
        both(recipe(folder))


def test_what_is_no_picture_is_left_out_with_a_word(folder):
    put(folder, "train/cat/1.png", "train/__MACOSX/2.png", "train/.thumbnails/3.png", "test/cat/11.png")
    (folder / "train/cat/notes\x1b[31m.txt").write_text("")
    with pytest.warns(UserWarning, match="left out, as no pictures by their names: .*notes") as caught:
        assert both(recipe(folder)) == ([(1, "cat")], [(11, "cat")])
    assert all(str(warning.message).isprintable() for warning in caught)


def test_splits_of_other_names_and_configurations_in_folders(folder):
    put(folder, "small/fit/cat/1.png", "small/train/cat/2.png", "small/held out/cat/11.png", "large/fit/cat/3.png")
    data = recipe(folder, config="small", train_split="fit", test_split="held out")
    assert both(data) == ([(1, "cat")], [(11, "cat")])


CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n{}---\n"


def declare(folder: Path, **files: str) -> None:
    lines = "".join(f"  - split: {split}\n    path: '{path}'\n" for split, path in files.items())
    (folder / "README.md").write_text(CARD.format(lines))


@ways
def test_a_card_that_tests_on_what_is_trained_on_is_refused(folder, way):
    table(folder, "train-a.parquet", [1, 2], [0, 1], ["cat", "dog"])
    table(folder, "test-a.parquet", [11], [0], ["cat", "dog"])
    declare(folder, train="*.parquet", test="test-a.parquet")
    with pytest.raises(DataError, match=r"test-a.parquet' is a file of 'train' and of 'test'"):
        both(recipe(folder, way))
    declare(folder, train="train-a.parquet", test="test-a.parquet")
    assert both(recipe(folder, way)) == ([(1, "cat"), (2, "dog")], [(11, "cat")])


@ways
def test_a_card_does_not_renumber_classes(folder, way):
    """One list of names is read for all files; one that numbers otherwise was read by it."""
    table(folder, "a.parquet", [1, 2], [0, 1], ["cat", "dog"])
    table(folder, "b.parquet", [11], [0], ["dog", "cat"])
    declare(folder, train="a.parquet", test="b.parquet")
    with pytest.raises(DataError, match=r"b.parquet', class 0 is 'dog', and 'cat'"):
        both(recipe(folder, way))


@ways
def test_a_card_does_not_merge_folders(folder, way):
    put(folder, "one/a/cat/1.png", "one/b/cat/2.png", "two/cat/11.png")
    declare(folder, train="one/**", test="two/**")
    with pytest.raises(DataError, match=r"the folders '.*one/a/cat' and '.*one/b/cat' would be one class"):
        both(recipe(folder, way))


@pytest.mark.parametrize("highest", [10**12, 2**62, 4, 2**31])
def test_numbers_of_classes_without_names_have_no_gaps(folder, highest):
    """A label of 10**12 built a network with as many outputs."""
    table(folder, "train.parquet", [1, 2, 3, 4], [0, 1, 2, highest], None)
    table(folder, "test.parquet", [11], [0], None)
    with pytest.raises(DataError, match=rf"4 different numbers up to {highest}; 3 is none of them"):
        both(recipe(folder))


@pytest.mark.parametrize("kind", ["uint64", "float64"])
def test_numbers_beyond_64_bits_are_no_classes(folder, kind):
    path = table(folder, "train.parquet", [1], [0], None)
    table(folder, "test.parquet", [11], [0], None)
    value = 2**64 - 1 if kind == "uint64" else 0.5
    pictures = datasets.Dataset.from_parquet(str(path)).remove_columns("label")
    pictures.add_column("label", np.array([value], kind)).to_parquet(path)
    with pytest.raises(DataError, match=r"data.label_column='label'.*(numbers of classes|class numbers)"):
        both(recipe(folder))
