"""Data sets: scikit-learn's digits, glyphs drawn from fonts, Fashion-MNIST, those of the Hub, and local folders."""

from typing import Literal

from clars.lab.data import digits, fashion, glyphs, hub, source, stream
from clars.lab.data.images import UnreadableImageError
from clars.lab.data.splits import Batch, HeldImages, Images, Splits, collate
from clars.lab.data.stream import StreamedImages, batched
from clars.lab.recipes import schema
from clars.lab.recipes.checks import FASHION

__all__ = [
    "Batch",
    "HeldImages",
    "Images",
    "Splits",
    "StreamedImages",
    "UnreadableImageError",
    "batched",
    "collate",
    "load",
    "reachable",
]

EMBEDDED = {"digits": digits.load, "glyphs": glyphs.load}
ORIGINS = {"digits": "comes with scikit-learn", "glyphs": "drawn from the fonts of matplotlib"}


def load(data: schema.Data, *, evaluation: Literal["test", "validation"]) -> Splits:
    """Return what to train on and what to measure accuracy on.

    evaluation="test": the training and the test split, whole, or without what validation has, by `data.hold_out`.
    evaluation="validation": the share `data.validation_fraction` of the training split is held out, class by
    class and the same in every call, and becomes `test`. The test split is not used.
    Raises DataError if the data cannot be reached, read or used, RecipeError for statistics that do not fit.
    """
    kept = stream.load if data.streaming else hub.load
    if data.name == FASHION:
        return fashion.load(data, evaluation)
    read = kept if data.path else EMBEDDED.get(data.name, kept)
    return read(data, evaluation)


def reachable(data: schema.Data) -> tuple[bool, str]:
    """Say, without network, whether the data is on this machine, and where it is or what to do about it."""
    if not data.path and data.name in EMBEDDED:
        return True, ORIGINS[data.name]
    if data.name == FASHION:
        return fashion.reachable(data)
    return source.reachable(data)
