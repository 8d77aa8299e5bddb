"""Where runs lie, and the name of every file of a run: in its own folder, and in compact form beside its recipe."""

import re
from pathlib import Path

from clars.lab.recipes.load import Resolved

RECORD = "run.json"
METRICS = "metrics.jsonl"
METRICS_CSV = "metrics.csv"  # the same numbers for a spreadsheet, without those that are lists; made anew each epoch
LAYERS = "layers.jsonl"
NOISE = "noise.jsonl"
WEIGHTS = "model.safetensors"
NOISE_FIGURE = "noise.png"
STATE = "resume.safetensors"  # to go on from; there while the run is not over

# The files beside a record, by the names of their digests.
BESIDE = {"metrics": METRICS, "layers": LAYERS, "noise": NOISE, "weights": WEIGHTS}


def folder(out: Path, name: str, seed: int) -> Path:
    """Return where the run of one seed lies: `<out>/<name>/seed<k>`."""
    return out / name / f"seed{seed}"


def default_out(resolved: Resolved) -> Path:
    """Return where runs of a recipe go: changed recipes have a folder of their own, apart from those of tables."""
    return Path("runs", *(["changed"] if resolved.overrides else []), *resolved.name.split("/")[:-1])


def folders(out: Path, name: str) -> list[Path]:
    """Return the folders of runs of `name` below `out` that have a record."""
    return [path.parent for path in (out / name).glob(f"seed*/{RECORD}") if _is_seed(path.parent.name)]


def compact(results: Path, name: str, seed: int) -> Path:
    """Return the one file of a run in compact form: `<results>/<name>/seed<k>.json`."""
    return results / name / f"seed{seed}.json"


def compacts(results: Path, name: str) -> list[Path]:
    """Return the files of runs of `name` in compact form."""
    return [path for path in (results / name).glob("seed*.json") if _is_seed(path.stem)]


def compact_layers(record: Path) -> Path:
    """Return the file of layer statistics beside a run in compact form."""
    return record.with_name(f"{record.stem}.layers.json")


def seed_of(path: Path) -> int | None:
    """Return the seed that the name of a run's file or folder tells, as seed0.json and seed0/run.json do."""
    for name in (path.stem, path.parent.name):
        if _is_seed(name):
            return int(name.removeprefix("seed"))
    return None


def _is_seed(name: str) -> bool:
    return re.fullmatch(r"seed\d+", name) is not None
