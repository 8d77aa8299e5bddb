"""Images of `glyphs`: characters turned, stretched, displaced, among clutter, on an uneven ground, with noise.

The same bytes on every machine: random numbers are raw ones of PCG64, whose stream numpy keeps, parameters come of
operations that IEEE 754 rounds exactly, and pixels of integers.
"""

import numpy as np

from clars.lab.data.glyphs.fonts import BOX, CHARACTERS, FONTS, HEIGHT, STROKES, shapes

SIZE = 28
BLOCK = 1024
ONE = 1 << 8  # of fixed-point numbers
# Twice the distance from the middle, which is an integer.
X2, Y2 = (axis.reshape(-1).astype(np.int32) for axis in np.meshgrid(*[np.arange(1 - SIZE, SIZE, 2)] * 2))
SPLITS = tuple(FONTS)


def images(split: str, count: int, seed: int = 0) -> np.ndarray:
    """Return the first `count` images of a split, uint8 [count, SIZE, SIZE].

    Image i shows character i mod 36, so that every beginning of a split is balanced. It does not depend on `count`.
    """
    blocks = [_block(split, number, seed) for number in range(-(-count // BLOCK))]
    return np.concatenate(blocks)[:count]


def labels(count: int) -> np.ndarray:
    """Return the classes of the first `count` images of any split, int64 [count]: places in CHARACTERS."""
    return np.arange(count) % len(CHARACTERS)


class _Chance:
    """Random numbers for one block, the same for each array asked for in the same order."""

    def __init__(self, *place: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(place))

    def uniform(self, low: float, high: float) -> np.ndarray:
        """One number in [low, high) for each image, float64 [BLOCK]."""
        return low + (high - low) * ((self.bits.random_raw(BLOCK) >> np.uint64(11)) * 2.0**-53)

    def below(self, bound: int) -> np.ndarray:
        """One integer in [0, bound) for each image, int64 [BLOCK]."""
        return self.uniform(0, bound).astype(np.int64)

    def noise(self) -> np.ndarray:
        """About normal, of standard deviation 148: the sum of four bytes less its mean, int16 [BLOCK, SIZE**2]."""
        raw = self.bits.random_raw(BLOCK * SIZE**2 // 2).view(np.uint8).reshape(4, BLOCK, SIZE**2)
        return raw.sum(0, dtype=np.int16) - np.int16(510)


def _block(split: str, number: int, seed: int) -> np.ndarray:
    chance = _Chance(seed, SPLITS.index(split), number)
    own = labels((number + 1) * BLOCK)[-BLOCK:]
    shift = [chance.uniform(-2.5, 2.5) for _ in range(2)]
    ink = _character(chance, split, own, chance.uniform(15, 22), shift)
    clutter = np.maximum(_neighbour(chance, split), _line(chance))
    clutter = clutter * _whole(chance.uniform(0, 0.7 * ONE)) >> 8
    return _develop(chance, np.maximum(ink, clutter)).reshape(BLOCK, SIZE, SIZE)


def _neighbour(chance: _Chance, split: str) -> np.ndarray:
    """A part of another character at the left, right, upper or lower edge."""
    away, along = chance.uniform(13, 18), chance.uniform(-6, 6)
    side = chance.below(4)
    away = np.where(side % 2, away, -away)
    shift = [np.where(side < 2, away, along), np.where(side < 2, along, away)]
    return _character(chance, split, chance.below(len(CHARACTERS)), chance.uniform(15, 22), shift)


def _character(
    chance: _Chance, split: str, which: np.ndarray, height: np.ndarray, shift: list[np.ndarray]
) -> np.ndarray:
    """The coverage, int32 [BLOCK, SIZE**2] of 0 to 255, of characters of a height in pixels, in random shapes."""
    drawn = shapes(split)
    font, stroke = chance.below(len(drawn)), chance.below(len(STROKES))
    tangent, shear, stretch = chance.uniform(-0.25, 0.25), chance.uniform(-0.2, 0.2), chance.uniform(0.85, 1.15)
    cosine = 1 / np.sqrt(1 + tangent * tangent)
    sine = tangent * cosine
    scale = HEIGHT / height
    a, b = scale * stretch * (cosine - shear * sine), scale * stretch * (sine + shear * cosine)
    c, d = -scale * sine, scale * cosine
    u = _coordinates(a, b, shift)
    v = _coordinates(c, d, shift)
    start = ((font * len(STROKES) + stroke) * len(CHARACTERS) + which) * BOX**2
    return _interpolate(drawn.reshape(-1), start, u, v)


def _coordinates(a: np.ndarray, b: np.ndarray, shift: list[np.ndarray]) -> np.ndarray:
    """Where in the box each pixel looks, in ONE-ths of its pixels, int32 [BLOCK, SIZE**2]; beyond it, at its edge."""
    middle = _whole(ONE * ((BOX - 1) / 2 - a * shift[0] - b * shift[1]))
    places = _whole(a * ONE / 2) * X2 + _whole(b * ONE / 2) * Y2 + middle
    return places.clip(0, (BOX - 2) * ONE, out=places)


def _interpolate(flat: np.ndarray, start: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Bilinear, of boxes that begin at `start` in `flat`."""
    corner = start[:, None] + (v >> 8) * BOX + (u >> 8)
    u, v = u & (ONE - 1), v & (ONE - 1)
    upper, lower = (
        (ONE - u) * flat[corner + row].astype(np.int32) + u * flat[corner + row + 1].astype(np.int32)
        for row in (0, BOX)
    )
    return (ONE - v) * upper + v * lower >> 16


def _line(chance: _Chance) -> np.ndarray:
    """The coverage of a straight line that crosses one half of the images."""
    tangent, upright = chance.uniform(-1, 1), chance.below(2).astype(bool)
    offset, width = chance.uniform(-14, 14), chance.uniform(0.3, 1)
    slope = _whole(ONE / 2 * tangent)
    distance = np.where(upright[:, None], X2 * (ONE // 2) + slope * Y2, Y2 * (ONE // 2) + slope * X2)
    distance = np.abs(distance - _whole(ONE * offset))
    there = chance.below(2)[:, None].astype(np.int32)
    return ((_whole(ONE * width) + ONE // 2 - distance).clip(0, ONE - 1) * there).astype(np.int32)


def _develop(chance: _Chance, coverage: np.ndarray) -> np.ndarray:
    """From coverage to grey values: ink darker or lighter than a ground that slopes, and noise."""
    dark = chance.uniform(0, 90)
    light = dark + chance.uniform(80, 165)
    inverse = chance.below(2).astype(bool)
    ground, ink = np.where(inverse, dark, light), np.where(inverse, light, dark)
    slopes = _whole(chance.uniform(-1, 1) * ONE) * X2 + _whole(chance.uniform(-1, 1) * ONE) * Y2
    strength = _whole(chance.uniform(4, 20) * ONE / 148)
    grey = _whole(ground * ONE) + slopes + coverage * _whole(ink - ground) + strength * chance.noise()
    return (grey >> 8).clip(0, 255).astype(np.uint8)


def _whole(numbers: np.ndarray) -> np.ndarray:
    """Rounded, as a column of int32 that multiplies a row of pixels."""
    return np.rint(numbers).astype(np.int32)[:, None]
