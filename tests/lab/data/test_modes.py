"""Images of every kind that PIL opens: one picture, stored in each, comes out the same."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clars.lab.data import UnreadableImageError, load
from clars.lab.recipes.schema import Data

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
GREY = Image.fromarray(RAMP)
HOLE = np.arange(64).reshape(8, 8) < 8  # the first row, black, is transparent: it comes out white


def on_disk(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(numbers: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    """Return a PNG file of 16 bits a channel, which PIL writes for grey alone; colour is 0, 2, 4 or 6."""
    height, width = numbers.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0), *chunks]
    parts += [b"IDAT" + zlib.compress(rows), b"IEND"]
    sealed = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def with_alpha(mode: str) -> Image.Image:
    image = GREY.convert(mode)
    image.putalpha(Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8)))
    return image


def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Return the picture as a camera stores it that was held otherwise, and what it notes about that."""
    undo = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90}
    notes = Image.Exif()
    notes[0x0112] = orientation
    return GREY.transpose(undo[orientation]), notes


def turned_file(orientation: int, kind: str, **options) -> bytes:
    image, notes = turned(orientation)
    return on_disk(image, kind, exif=notes, **options)


def sixteen(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257


def tiff(numbers: np.ndarray, **tags: int) -> bytes:
    return on_disk(Image.fromarray(numbers), "TIFF", tiffinfo={int(key[1:]): value for key, value in tags.items()})


def fits(numbers: np.ndarray) -> bytes:
    """Return what telescopes write: signed or unsigned is told by an offset, which PIL leaves aside."""
    cards = {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": numbers.shape[1], "NAXIS2": numbers.shape[0]}
    header = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items()) + "END"
    return header.ljust(2880).encode() + numbers.astype(">i2").tobytes().ljust(2880, b"\0")


def frames(kind: str) -> bytes:
    return on_disk(GREY, kind, save_all=True, append_images=[Image.new("L", (8, 8), 99)])


ALPHA = np.dstack([sixteen(RAMP), np.where(HOLE, 0, 65535)])
WHOLE = {
    "grey.png": on_disk(GREY, "PNG"),
    "colour.png": on_disk(GREY.convert("RGB"), "PNG"),
    "palette.png": on_disk(GREY.convert("P"), "PNG"),
    "grey16.png": on_disk(Image.fromarray(sixteen(RAMP)), "PNG"),
    "grey16.pgm": on_disk(Image.fromarray(sixteen(RAMP)), "PPM"),
    "grey16.jp2": on_disk(Image.fromarray(sixteen(RAMP)), "JPEG2000"),
    "colour16.png": png_of_16_bits(np.dstack([sixteen(RAMP)] * 3), 2),
    "maximum1023.pgm": b"P5 8 8 1023\n" + np.rint(RAMP * (1023 / 255)).astype(">u2").tobytes(),
    "grey16.tiff": tiff(sixteen(RAMP)),
    "grey16-big-endian.tiff": on_disk(Image.frombytes("I;16B", (8, 8), sixteen(RAMP).astype(">u2").tobytes()), "TIFF"),
    "white-is-zero16.tiff": tiff(65535 - sixteen(RAMP), _262=0),
    "signed16.tiff": tiff(np.rint(RAMP * (32767 / 255)).astype(np.uint16), _339=2),
    "signed8.tiff": tiff(np.rint(RAMP * (127 / 255)).astype(np.uint8), _339=2),
    "whole32.tiff": tiff(RAMP.astype(np.int32)),
    "float.tiff": tiff((RAMP / 255).astype(np.float32)),
    "float.pnm": on_disk(Image.fromarray((RAMP / 255).astype(np.float32)), "PPM"),
    "ink.tiff": on_disk(GREY.convert("RGB").convert("CMYK"), "TIFF"),
    "held3.png": turned_file(3, "PNG"),
    "held5.webp": turned_file(5, "WEBP", lossless=True),
    "held6.tiff": turned_file(6, "TIFF"),
    "frames.gif": frames("GIF"),
    "frames.tiff": frames("TIFF"),
    "frames.png": frames("PNG"),
}
EXTRA = struct.pack("<HHI", 338, 3, 1)  # a tag of TIFF: the alpha channel is 2, by itself, or 1, in the colours
HOLES = {
    "grey-alpha.png": on_disk(with_alpha("L"), "PNG"),
    "alpha.png": on_disk(with_alpha("RGB"), "PNG"),
    "alpha.webp": on_disk(with_alpha("RGB"), "WEBP", lossless=True, exact=True),
    "alpha.tiff": on_disk(with_alpha("RGB"), "TIFF"),
    "premultiplied.tiff": on_disk(with_alpha("L"), "TIFF").replace(EXTRA + b"\2", EXTRA + b"\1"),
    "palette.png": on_disk(GREY.convert("P"), "PNG", transparency=bytes([0] * 32 + [255] * 224)),
    "palette.gif": on_disk(GREY, "GIF", transparency=0),
    "grey-key.png": on_disk(GREY, "PNG", transparency=0),
    "colour-key.png": on_disk(GREY.convert("RGB"), "PNG", transparency=(0, 0, 0)),
    "grey16-key.png": png_of_16_bits(sixteen(RAMP), 0, b"tRNS\0\0"),
    "grey-alpha16.png": png_of_16_bits(ALPHA, 4),
}
ONE_KEY = ("palette.gif", "grey-key.png", "colour-key.png", "grey16-key.png")  # only black is transparent


@pytest.fixture
def pictures(tmp_path):
    """Write pictures into the two splits of a folder, and return the recipe's section for them."""

    def write(files: dict[str, bytes]) -> Data:
        for split in ("train", "test"):
            (tmp_path / "pictures" / split / "ramp").mkdir(parents=True)
            for name, content in files.items():
                (tmp_path / "pictures" / split / "ramp" / name).write_bytes(content)
        path = str(tmp_path / "pictures")
        return Data(name="pictures", path=path, image_size=8, channels=1, mean=[0.0], std=[1.0])

    return write


WAYS = [{}, {"in_memory": True}, {"streaming": True, "train_examples": 1}]


def read(data: Data, way: dict) -> dict[str, torch.Tensor]:
    """Return the test images as uint8, by the names of their files."""
    images = load(data.model_copy(update=way), evaluation="test").test
    pixels, _ = images.__getitems__(list(images.items()))
    names = sorted(path.name for path in (Path(data.path) / "test/ramp").iterdir())
    return dict(zip(names, (pixels * 255).round().to(torch.uint8), strict=True))


@pytest.mark.parametrize("way", WAYS, ids=["decoded", "in memory", "streamed"])
def test_every_mode_is_scaled_by_its_range(pictures, way):
    """16-bit greys, whole numbers and floats were cut to black and white, and photographs lay on their sides."""
    for name, image in read(pictures(WHOLE), way).items():
        coarse = name == "signed8.tiff"  # has half as many greys
        assert (image.int() - torch.tensor(RAMP).int()).abs().max() <= coarse, name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", WAYS, ids=["decoded", "in memory", "streamed"])
def test_what_is_transparent_is_white(pictures, way, channels):
    """The colour that lies hidden under transparent pixels came out, whatever it was."""
    data = pictures(HOLES).model_copy(update={"channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels})
    for name, image in read(data, way).items():
        expected = np.where(RAMP == 0 if name in ONE_KEY else HOLE, 255, RAMP)
        assert (image.int() - torch.tensor(expected).int()).abs().max() == 0, name


def test_photographs_keep_their_orientation_in_colour(pictures):
    """JPEG files of telephones, of which the numbers are near, not equal."""
    image, notes = turned(6)
    content = on_disk(image.convert("RGB"), "JPEG", quality=100, subsampling=0, exif=notes)
    (pixels,) = read(pictures({"held6.jpg": content}), {}).values()
    assert (pixels[0].int() - torch.tensor(RAMP).int()).abs().max() < 4


def test_notes_of_a_camera_that_cannot_be_read_do_no_harm(pictures):
    content = on_disk(GREY, "PNG", exif=b"Exif\0\0no notes at all")
    (pixels,) = read(pictures({"a.png": content}), {}).values()
    assert torch.equal(pixels[0], torch.tensor(RAMP))


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        (tiff(RAMP.astype(np.float32)), r"from 0\.0 to 252\.0, .*white 1\."),
        (tiff(np.where(HOLE, np.nan, RAMP / 255).astype(np.float32)), r"from nan to nan, .*white 1\."),
        (tiff(np.where(HOLE, -1, RAMP / 255).astype(np.float32)), r"from -1\.0 to .*white 1\."),
        (tiff(RAMP.astype(np.int32) * 257), r"from 0 to 64764, .*white 255\."),
        (tiff(RAMP.astype(np.int32) - 1), r"from -1 to 251, .*white 255\."),
        (tiff(sixteen(RAMP), _339=2), r"from -\d+ to \d+, .*white 32767\."),
        (tiff(RAMP, _339=2), r"from -128 to 124, .*white 127\."),
        (on_disk(Image.fromarray(RAMP.astype(np.float32)), "PPM"), r"from 0\.0 to 252\.0, .*white 1\."),
        (fits(sixteen(RAMP)), r"what is white in a FITS file of PIL's mode 'I;16' is not known"),
    ],
    ids=["float", "nan", "negative float", "32 bits", "negative", "signed 16", "signed 8", "pfm", "other format"],
)
@pytest.mark.parametrize("way", WAYS[::2], ids=["decoded", "streamed"])
def test_numbers_without_a_known_white_are_refused(pictures, content, numbers, way):
    name = {b"SI": "a.fits", b"Pf": "a.pnm"}.get(content[:2], "a.tiff")
    with pytest.raises(UnreadableImageError, match=rf"{name}: .*{numbers}.*8 or 16 bits"):
        read(pictures({name: content}), way)
