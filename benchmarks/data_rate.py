"""Images per second of the data path alone, from data sets that are held in the memory of the device.

    python benchmarks/data_rate.py

No network: whole epochs of batches are formed as training forms them, from the order of the epoch and its draws to
normalised float32 images, one epoch after another for at least a second. The median of the rounds counts. The processor
is measured, and a GPU where torch finds one. Writes data_rate.json and data_rate.md beside this file, or to the folder
given by --out.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from step_time import machine

from clars.lab import data
from clars.lab.data import HeldImages
from clars.lab.data.memory import StoredImages
from clars.lab.files import write_json, write_text
from clars.lab.launching.division import divide
from clars.lab.loading.loader import Loader
from clars.lab.recipes.schema import Data
from clars.lab.training.batches import batches_of

HERE = Path(__file__).parent
SECONDS = 1.0  # at least, for each round


def embedded(name: str, size: int) -> HeldImages:
    """Return the training images of a data set that the package brings."""
    return data.load(Data(name=name, image_size=size, channels=1), evaluation="test").train


def coloured() -> HeldImages:
    """Return made-up images of the size and number of CIFAR-10's, with `augmentation: crop`."""
    pixels = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8)
    return StoredImages(pixels, torch.randint(10, (50_000,)), [0.5] * 3, [0.25] * 3, crop=True)


SETS = {
    "digits, 8 x 8": lambda: embedded("digits", 8),
    "glyphs, 28 x 28": lambda: embedded("glyphs", 28),
    "50,000 of 32 x 32 x 3, crop": coloured,
}


def rate(images: HeldImages, device: torch.device, batch: int, rounds: int) -> float:
    """Return the median images per second over the rounds."""
    images = images.to(device)
    batches = batches_of(images, divide(batch, 1, None), 0, seed=0)
    loader, rates = Loader(images, batches, device), []
    for _ in range(rounds + 1):
        seen, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            batches.epoch += 1
            images.place = (0, batches.epoch)
            for x, _ in loader:
                seen += len(x)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        rates.append(seen / (time.perf_counter() - began))
    return statistics.median(rates[1:])  # the first warms up


def markdown(result: dict) -> str:
    """Return the table as Markdown."""
    columns = [f"{count} thread{'s' * (count != '1')}" for count in result["threads"]] + ["GPU"]
    lines = [
        f"Images per second of the data path alone, in batches of {result['batch']} from data held on the device: the "
        f"median of {result['rounds']} rounds. Measured on {result['device']}. Regenerate with `{result['command']}`.",
        "",
        f"| data | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
    ]
    for name, found in result["rates"].items():
        cells = [f"{found[count]:,.0f}" for count in result["threads"]]
        cells.append(f"{found['cuda']:,.0f}" if "cuda" in found else "not measured")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    rates: dict[str, dict[str, float]] = {}
    for name, make in SETS.items():
        images, rates[name] = make(), {}
        for count in options.threads:
            torch.set_num_threads(count)
            rates[name][str(count)] = rate(images, torch.device("cpu"), options.batch, options.rounds)
        if torch.cuda.is_available():
            rates[name]["cuda"] = rate(images, torch.device("cuda"), options.batch, options.rounds)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = machine(where, "data_rate.py") | {"batch": options.batch, "rounds": options.rounds}
    result |= {"threads": [str(count) for count in options.threads], "rates": rates}
    write_json(options.out / "data_rate.json", result)
    write_text(options.out / "data_rate.md", markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
