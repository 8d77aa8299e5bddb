"""The model card of a checkpoint, written from its record alone."""

import html
import re
import shlex

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from clars.errors import printable
from clars.lab.checkpoints.manifest import Entry
from clars.lab.data import Splits
from clars.lab.recipes.schema import Recipe
from clars.lab.runs.record import Record

WEIGHTS = {"last": "those after the last step", "ema": "the exponential moving average over the steps"}


TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}

{{ what }}

```python
{{ imported }}import timm

model = timm.create_model("{{ source }}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

| | |
|---|---|
{{ rows }}

The settings are whole in `recipe.yaml`, the record of the run in `run.json`. In the repository of clars,
`clars checkpoints verify {{ name }}` checks the files and measures the accuracy again, and

```bash
clars run {{ command }}
```

repeats the run. Nothing but this accuracy was measured: not robustness, not calibration, not other data.
"""


def text(value: object) -> str:
    """Return a value as plain text within Markdown: no markup, no line breaks."""
    plain = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~])", r"\\\1", plain)


def write(name: str, entry: Entry, record: Record, recipe: Recipe, splits: Splits, repo: str | None) -> str:
    """Return the card.

    Args:
        name: of the checkpoint.
        entry: what the manifest says of it; its files are not used.
        record: of the run.
        recipe: as it was run.
        splits: the data it was measured on.
        repo: `ORG/NAME` on the Hub, where it goes there.
    """
    data = recipe.data
    made = ModelCard.from_template(
        _data(name, entry, record, recipe),
        template_str=TEMPLATE,
        name=name,
        what=f"{text(recipe.model.name)} for {text(data.name)}: {splits.num_classes} classes, images of"
        f" {data.channels} x {data.image_size} x {data.image_size}. {text(recipe.description)}.",
        imported=_import(recipe),
        source=f"hf-hub:{repo}" if repo else f"local-dir:checkpoints/{name}",
        rows=_rows(entry, record, recipe, splits),
        command=_command(entry),
    )
    return printable(f"{made}\n")


def _data(name: str, entry: Entry, record: Record, recipe: Recipe) -> ModelCardData:
    """Return what the Hub reads of a card."""
    result = EvalResult(
        task_type="image-classification",
        dataset_type=recipe.data.name,
        dataset_name=recipe.data.name,
        dataset_config=recipe.data.config,
        dataset_split=recipe.data.test_split if entry.top1.split == "test" else "validation",
        metric_type="accuracy",
        metric_name="top-1, %",
        metric_value=round(record.final.top1, 4),
    )
    tags = ["timm", "image-classification", "clars", recipe.optimizer.name]
    return ModelCardData(license="apache-2.0", library_name="timm", tags=tags, model_name=name, eval_results=[result])


def _rows(entry: Entry, record: Record, recipe: Recipe, splits: Splits) -> str:
    top1, final, schedule = entry.top1, record.final, record.schedule
    interval = "" if top1.half_width is None else f" ± {top1.half_width:.2f} (95 %)"
    rows = {
        "top-1 of these weights": f"{final.top1:.2f} % of {len(splits.test):,} examples, {top1.split} split",
        f"mean over {top1.n} seeds" if top1.n > 1 else "seeds run": f"{top1.mean:.2f} %{interval}" if top1.n > 1 else 1,
        "top-5": None if final.top5 is None else f"{final.top5:.2f} %",
        "loss": f"{final.loss:.4f}",
        "weights": WEIGHTS[entry.weights] + (f", decay {recipe.ema.decay:g}" if recipe.ema else ""),
        "BatchNorm statistics": "taken over the training set at the end"
        if recipe.evaluation.batch_norm == "recalibrated"
        else None,
        "started from": text(f"{record.init.checkpoint}, SHA-256 {record.init.sha256[:12]}, {record.init.head} head")
        if record.init
        else None,
        "optimizer": f"{recipe.optimizer.name}, peak rate {schedule['peak_rate']:g}, {schedule['name']} decay, "
        f"{schedule['warmup_epochs']:g} epochs of warmup",
        "batch and epochs": f"{record.global_batch_size:,} and {record.epochs}, {record.steps:,} steps",
        "recipe": text(f"{entry.recipe}@{entry.version}") + f", SHA-256 {entry.recipe_sha256[:12]}",
        "overrides": text(" ".join(entry.overrides)) or None,
        "seed": entry.seed,
        "commit": f"{entry.commit}{'' if entry.dirty is False else ', with changes'}" if entry.commit else "none",
        "made with": text(", ".join(f"{key} {value}" for key, value in record.versions.items())),
        "on": text(f"{record.device}; strategy {record.strategy}, processes: {record.world_size}"),
    }
    return "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)


def _import(recipe: Recipe) -> str:
    own = timm.models.model_entrypoint(recipe.model.name.partition(".")[0]).__module__.startswith("clars.")
    return "import clars.models  # which adds this network to timm's\n" if own else ""


def _command(entry: Entry) -> str:
    words = [f"{entry.recipe}@{entry.version}", *entry.overrides, "--seed", str(entry.seed)]
    return shlex.join(" ".join(word.split()) for word in words).replace("`", "")
