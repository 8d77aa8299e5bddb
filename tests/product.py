"""A table that is a product, in two tiers, for tests of what reads such tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from demo import write, write_run_into

from clars.lab import runs
from clars.lab.tables.definition import ResolvedTable

NET = """\
description: A small network
model: {name: resnet8, arguments: {width: 4}}
data: {name: digits, image_size: 8, channels: 1}
optimizer: {name: clars}
schedule: {base_rate: 1, base_batch: 64}
batch_size: 64
epochs: 3
"""
PRODUCT = """\
title: Batches
claim: A claim.
comparisons:
  - {first: clars, second: lars-warmup, claim: "CLARS needs no warmup."}
figures: [accuracy-by-batch]
targets: {net: 80.0}
tiers:
  lite:
    seeds: [0, 1, 2, 3, 4]
    product:
      recipes: [net]
      methods:
        clars: {label: CLARS, set: {optimizer.name: clars}}
        lars: {label: LARS, set: {optimizer.name: lars}}
        lars-warmup:
          label: "LARS, warmup"
          rate_of: lars
          set: {optimizer.name: lars, schedule.warmup_epochs: 1}
          at: {512: {schedule.warmup_epochs: 2}}
      batches: [64, 256, 512]
      batches_of: {net: [64, 512]}
      tuned: [clars]
    search:
      grid: {clars: [2, 4, 8], lars: [1, 2, 4]}
      seeds: [10, 11]
      set: {epochs: 2}
  full:
    seeds: [0]
    set: {epochs: 9}
    rows:
      - {label: CLARS, recipe: net}
      - {label: "CLARS, wide", recipe: net, name: wide, set: {model.arguments.width: 8}}
"""


def write_product(root: Path, *, searched: bool = True, replace: Mapping[str, str] | None = None) -> None:
    """Write the table into the recipe folder `demo` of the repository `root`, with each text replaced by another.

    Without a search every row has the rate of its recipe.
    """
    text = PRODUCT
    if not searched:
        text = text.replace("tuned: [clars]", "tuned: []")
        text = text[: text.index("    search:")] + text[text.index("  full:") :]
    for old, new in (replace or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    write(root / "recipes", net=NET, table=text)


def run_rows(table: ResolvedTable, out: Path, accuracies: Mapping[str, Sequence[float]], **changes) -> None:
    """Write a run for each accuracy, by row name and seed."""
    rows = {row.name: row for row in table.rows}
    for name, values in accuracies.items():
        for seed, top1 in enumerate(values):
            write_run_into(runs.folder(out, name, seed), rows[name].resolved, seed, top1, **changes)
