"""python recipes/imagenet/gpu_hours.py [--per-second N]: an estimate of the GPU hours of a row of the full tier.

Without a throughput of SGD on your own GPU (images a second, as `examples_per_second` of a short run's record says),
it takes the public one of ffcv for ResNet-50 on an A100. What a method's step costs beside SGD's is that of
benchmarks/step_time.json, measured on a processor.
"""

import argparse
import json
import statistics
from pathlib import Path

IMAGES, EPOCHS, SEEDS = 1_281_167, 90, 3
# github.com/libffcv/ffcv-imagenet: 88 epochs of ResNet-50 in 77 minutes on 8 A100, mixed precision, fewer pixels.
FFCV = 88 * IMAGES / (77 * 60 * 8)
STEPS = Path(__file__).parents[2] / "benchmarks" / "step_time.json"
METHODS = {"SGD": "sgd", "LARS": "lars", "CLARS": "clars"}
NETWORKS = ("resnet50", "densenet121", "mobilenetv2_100")


def rows(per_second: float) -> list[tuple[str, str, float, float]]:
    """Return network, method, step over SGD's, and GPU hours of a run; SGD does so many of ResNet-50's images a second.

    Another network's SGD is that much faster or slower than ResNet-50's as on the processor.
    """
    seconds = {}
    for row in json.loads(STEPS.read_text())["rows"]:
        if row["pixels"] == 224 and row["threads"] == 2:
            medians = {key: statistics.median(run[key] for run in row["seconds"]) for key in row["seconds"][0]}
            seconds[row["model"]] = medians
    hours = EPOCHS * IMAGES / per_second / 3600
    base = seconds["resnet50"]["sgd"]
    return [
        (network, label, seconds[network][key] / seconds[network]["sgd"], hours * seconds[network][key] / base)
        for network in NETWORKS
        for label, key in METHODS.items()
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-second", type=float, default=FFCV, help="images of ResNet-50 that SGD does a second")
    given = parser.parse_args().per_second
    if not given > 0:
        parser.error(f"--per-second {given}: a number above 0 is needed.")
    print(f"ResNet-50, SGD: {given:,.0f} images a second on one GPU.\n")
    print("| network | method | step / SGD's | GPU hours, a run | GPU hours, a row of three seeds |")
    print("|---|---|---:|---:|---:|")
    for network, label, ratio, hours in rows(given):
        print(f"| {network} | {label} | {ratio:.2f} | {hours:.1f} | {SEEDS * hours:.0f} |")


if __name__ == "__main__":
    main()
