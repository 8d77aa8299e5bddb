"""`python -m clars.lab.data.glyphs OUT.png`: a picture of glyphs, training fonts above and those of the test below."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clars.lab.data.glyphs.draw import SIZE, images
from clars.lab.data.glyphs.fonts import CHARACTERS
from clars.lab.files import replacing

ROWS = 6


def picture() -> Image.Image:
    """Return ROWS rows of each split, a column for each class, with a white bar between."""
    shape = ROWS, len(CHARACTERS), SIZE, SIZE
    train, test = (images(split, ROWS * len(CHARACTERS)).reshape(shape) for split in ("train", "test"))
    train, test = (part.transpose(0, 2, 1, 3).reshape(ROWS * SIZE, -1) for part in (train, test))
    bar = np.full((SIZE // 2, train.shape[1]), 255, np.uint8)
    return Image.fromarray(np.concatenate([train, bar, test]))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m clars.lab.data.glyphs OUT.png")
    with replacing(Path(sys.argv[1])) as temporary:
        picture().save(temporary)
