"""Images of every kind as 8 bits a channel: upright, on white where they are transparent, and never clipped.

What PIL converts by itself it cuts at 0 and 255, also where white is 65,535 or 1; it drops transparency, and shows
what colour lies hidden there; and it leaves a photograph as the camera was held.
"""

from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from clars.errors import DataError

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")  # PIL brings their 9 to 16 bits to the range of 16


def plain(image: Image.Image, mode: str) -> Image.Image:
    """Return the first frame of an opened image in PIL's `mode`, "L" or "RGB".

    Raises DataError where numbers go beyond what is white in the kind of file, or where that is not known.
    """
    image.load()
    tags = {key: image.tag_v2.get(key) for key in (BITS, PHOTOMETRIC, SAMPLE_FORMAT)} if image.format == "TIFF" else {}
    signed_bytes = image.mode == "L" and (tags.get(SAMPLE_FORMAT) or (0,))[0] == SIGNED
    upright = _upright(image)
    if image.mode.startswith(("I", "F")) or signed_bytes:
        numbers = np.asarray(upright)
        grey = _scaled(numbers.view(np.int8) if signed_bytes else numbers, _white(image, tags))
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which PIL heeds in images of 8 bits alone
            grey = 255 - grey
        if (hidden := image.info.get("transparency")) is not None:
            grey[numbers == hidden] = 255
        return Image.fromarray(grey).convert(mode)
    return (_on_white(upright) if upright.has_transparency_data else upright).convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    # Notes of a camera that cannot be read tell no orientation, and what they say about is whole.
    with suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def _on_white(image: Image.Image) -> Image.Image:
    straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)  # from colours that were multiplied by their opacity
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite((image.convert(straight) if straight else image).convert("RGBA"))
    return ground


def _white(image: Image.Image, tags: dict) -> float:
    """Return the number that stands for white."""
    if image.mode == "F":
        return 1.0
    if image.format in SIXTEEN_BITS:
        return 2**16 - 1
    if image.format != "TIFF":
        raise DataError(f"what is white in a {image.format} file of PIL's mode {image.mode!r} is not known. {_REMEDY}")
    bits = tags[BITS][0]
    if bits == 32:
        # Whole numbers of 32 bits come from arrays of 8 bits that a program has widened; others are found out.
        return 2**8 - 1
    return 2 ** (bits - 1) - 1 if (tags[SAMPLE_FORMAT] or (0,))[0] == SIGNED else 2**bits - 1


def _scaled(numbers: np.ndarray, white: float) -> np.ndarray:
    low, high = numbers.min(), numbers.max()
    if not (low >= 0 and high <= white):  # nor where one is no number
        raise DataError(
            f"its numbers go from {low} to {high}, and in this kind of file black is 0 and white {white:g}. {_REMEDY}"
        )
    return np.rint(numbers * (255 / white)).astype(np.uint8)


_REMEDY = "Store it as whole numbers of 8 or 16 bits that use their range, in PNG files for instance."
