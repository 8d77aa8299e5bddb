"""The fonts of `glyphs`, which matplotlib carries, and their characters drawn once, upright and large."""

import hashlib
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from clars.errors import DataError

# Capitals and figures: with small letters many a class would be another one at another size (c C, o O, s S, x X).
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_STYLES = {
    "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
}
# No family is in both. Left out of matplotlib's fonts: those of symbols, and cmmi10, whose figures are old-style.
FONTS = {
    "train": (*(family + style for family, styles in _STYLES.items() for style in styles), "cmr10", "cmb10", "cmti10"),
    "test": ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmss10", "cmtt10"),
}
BOX = 64
HEIGHT = 32
STROKES = (0, 1)


def path(font: str) -> Path:
    """Return the file of a font.

    Raises:
        DataError: it is not there.
    """
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    if not file.is_file():
        raise DataError(
            f"data.name='glyphs': the font {file} is missing, which matplotlib {matplotlib.__version__} should carry."
            " Install matplotlib anew from its wheel: python -m pip install --force-reinstall matplotlib."
        )
    return file


def fingerprint() -> str:
    """Return what the shapes depend on, as a SHA-256: the files of all fonts and what draws them."""
    digest = hashlib.sha256(f"freetype {features.version('freetype2')}".encode())
    for font in (*FONTS["train"], *FONTS["test"]):
        digest.update(path(font).read_bytes())
    return digest.hexdigest()


@cache
def shapes(split: str) -> np.ndarray:
    """Return the coverage of each pixel, uint8 [fonts, strokes, characters, BOX, BOX], of the fonts of a split.

    Capitals are HEIGHT pixels high, the ink of each character is in the middle of its box, and around it one pixel at
    least is empty. The second of `strokes` is bolder by a pixel on either side.
    """
    return np.stack([_draw(font) for font in FONTS[split]])


def _draw(font: str) -> np.ndarray:
    def face(size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(path(font), size, layout_engine=ImageFont.Layout.BASIC)

    _, top, _, bottom = face(100).getbbox("H")
    sized = face(round(100 * HEIGHT / (bottom - top)))
    return np.array([[_character(sized, text, stroke) for text in CHARACTERS] for stroke in STROKES])


def _character(face: ImageFont.FreeTypeFont, text: str, stroke: int) -> np.ndarray:
    left, top, right, bottom = face.getbbox(text, stroke_width=stroke)
    image = Image.new("L", (BOX, BOX))
    corner = ((BOX - left - right) // 2, (BOX - top - bottom) // 2)
    ImageDraw.Draw(image).text(corner, text, fill=255, font=face, stroke_width=stroke)
    drawn = np.asarray(image)
    assert not (drawn[[0, -1]].any() or drawn[:, [0, -1]].any()), (face.path, text)
    return drawn
