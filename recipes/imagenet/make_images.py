"""python recipes/imagenet/make_images.py [FOLDER]: a few small images in the schema of ILSVRC/imagenet-1k.

They show that the recipes run from end to end; accuracy on them means nothing.
"""

import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

FOLDER = "runs/imagenet/images"
COUNTS = {"train": 128, "validation": 64}
CLASSES = 1000
SHOWN = 8  # classes that have images


def image(label: int, draw: np.random.Generator) -> Image.Image:
    """Return blurred noise of a size of its own, in the class's colour."""
    width, height = draw.integers(70, 120, size=2).tolist()
    colour = np.random.default_rng(label).integers(0, 200, size=3)
    coarse = (colour + draw.integers(0, 56, size=(5, 5, 3))).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def split(name: str, seed: int) -> datasets.Dataset:
    """Return the rows of a split: an image and its label."""
    draw = np.random.default_rng(seed)
    labels = [number % SHOWN for number in range(COUNTS[name])]
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=[f"class {number}" for number in range(CLASSES)])
    )
    return datasets.Dataset.from_dict(
        {"image": [image(label, draw) for label in labels], "label": labels}, features, split=name
    )


def main(folder: Path) -> None:
    """Write a parquet file for each split."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(COUNTS):
        split(name, seed).to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else FOLDER))
