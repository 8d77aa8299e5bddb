"""A small recipe folder and runs of it, for tests of what reads recipes and records."""

import textwrap
from pathlib import Path

import pytest

from clars.lab import digests, runs
from clars.lab.recipes.load import Resolved, load
from clars.lab.runs.metrics import Metrics
from clars.lab.runs.record import Record

SMALL = """\
description: Nesterov SGD at the base batch
model: {name: resnet8, arguments: {width: 4}}
data: {name: digits, image_size: 8, channels: 1}
optimizer: {name: sgd, weight_decay: 5e-4}
schedule: {base_rate: 0.05, base_batch: 64}
batch_size: 64
epochs: 3
"""
LARGE = """\
description: CLARS at eight times the base batch
model: {name: resnet8, arguments: {width: 4}}
data: {name: digits, image_size: 8, channels: 1}
optimizer: {name: clars, weight_decay: 5e-4}
schedule: {base_rate: 2, base_batch: 64, warmup_epochs: 1}
batch_size: 512
epochs: 3
"""
TABLE = """\
title: Digits
claim: A claim.
rows:
  - {label: "Nesterov SGD, batch 64", recipe: small}
  - {label: CLARS, recipe: demo/large}
seeds: [0, 1, 2]
search:
  grid: {small: [0.1, 0.05], large: [2, 4]}
  seeds: [10, 11]
"""


def write(root: Path, **files: str) -> Path:
    """Write `<name>.yaml` of each keyword into demo/v1 below `root`."""
    for name, text in files.items():
        path = root / "demo" / "v1" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


def make_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `root` a repository with the recipe folder `demo`, and the current directory; return it."""
    monkeypatch.delenv("CLARS_RECIPES", raising=False)
    write(root / "recipes", small=SMALL, large=LARGE, table=TABLE)
    monkeypatch.chdir(root)
    return root


def make_record(resolved: Resolved, seed: int = 0, top1: float | None = 90.0, **changes) -> Record:
    """Return a record as a run of `resolved` would leave it, three steps an epoch."""
    epochs = changes.get("epochs", resolved.recipe.epochs)
    course = accuracies(top1 or 0.0, epochs)
    values = {
        "recipe": resolved.name,
        "version": resolved.version,
        "recipe_sha256": resolved.sha256,
        "overrides": list(resolved.overrides),
        "seed": seed,
        "command": f"clars run {resolved.full_name} --seed {seed} --launch cpu",
        "git": {"commit": None, "dirty": None},
        "versions": {"python": "3.11"},
        "device": "cpu: test",
        "threads": 1,
        "strategy": "single",
        "world_size": 1,
        "global_batch_size": resolved.recipe.batch_size,
        "micro_batch_size": resolved.recipe.batch_size,
        "accumulation": 1,
        "steps": 3 * epochs,
        "epochs": epochs,
        "settings": resolved.recipe.model_dump(mode="json"),
        "optimizer": resolved.recipe.optimizer.model_dump(),
        "schedule": resolved.recipe.schedule.model_dump() | {"peak_rate": resolved.peak_rate},
        "final": {"top1": top1, "top5": 99.0, "loss": 0.1},
        "best": {"top1": max(course), "epoch": course.index(max(course)) + 1} if course else None,
        "wall_seconds": 2.0,
        "examples_per_second": 100.0,
        "status": "finished",
    }
    return Record.model_validate(values | changes)


def accuracies(top1: float, epochs: int) -> list[float]:
    """Return a course that ends at `top1`, ten points an epoch."""
    return [max(0.0, top1 - 10 * (epochs - epoch)) for epoch in range(1, epochs + 1)]


def write_run(out: Path, name: str, seed: int = 0, top1: float = 90.0, **changes) -> Path:
    """Write a run of demo/`name` as training leaves it, three epochs that end at `top1`; return its folder."""
    folder = runs.folder(out, name, seed)
    return write_run_into(folder, load(f"demo/{name}"), seed, top1, **changes)


def write_run_into(folder: Path, resolved: Resolved, seed: int = 0, top1: float = 90.0, **changes) -> Path:
    """Write a run of `resolved` into `folder`."""
    course, losses = changes.pop("course", None), changes.pop("first_epoch_losses", None)
    if course:
        changes["best"] = {"top1": max(course), "epoch": course.index(max(course)) + 1}
    record, lines = make_record(resolved, seed, top1, **changes), Metrics(folder / "metrics.jsonl")
    for epoch, accuracy in enumerate(course or accuracies(top1, record.epochs), start=1):
        first = {"first_epoch_losses": losses} if losses and epoch == 1 else {}
        lines.append({"epoch": epoch, "step": 3 * epoch, "top1": accuracy} | first)
    seal(folder, record)
    return folder


def seal(folder: Path, record: Record | None = None) -> None:
    """Write the record of a run, anew where none is given, with the digests of the files that lie beside it."""
    record, names = record or Record.read(folder / "run.json"), {"metrics": "metrics.jsonl", "layers": "layers.jsonl"}
    there = {key: folder / name for key, name in names.items() if (folder / name).exists()}
    over = record.status != "interrupted"
    record.sealed(**{key: digests.of_file(path) for key, path in there.items() if over}).write(folder / "run.json")
