"""What this machine has, and what each recipe would need."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import matplotlib
import timm
import torch
from rich import box
from rich.table import Table

import clars.lab.models  # noqa: F401  registers this package's networks with timm
from clars import native
from clars.errors import UserError
from clars.lab import data, terminal
from clars.lab.launching import launch
from clars.lab.recipes import load, registry
from clars.lab.recipes.schema import Data, Recipe


@dataclass(frozen=True)
class Finding:
    """One line of the report; `ok` is False where something is missing."""

    subject: str
    ok: bool
    text: str


def report() -> Iterator[Table]:
    """Yield the report, a table for the terminal for each part."""
    parts = {
        "This machine": machine(),
        "Data sets of the recipes": data_sets(),
        "Recipes; what to do where data are missing stands above": recipes(),
    }
    for title, findings in parts.items():
        table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
        for finding in findings:
            table.add_row(*map(terminal.cell, (finding.subject, "yes" if finding.ok else "no", finding.text)))
        yield table


def machine() -> Iterator[Finding]:
    """Yield what is installed and which devices there are."""
    yield Finding("python", True, platform.python_version())
    yield Finding("torch", True, f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    yield Finding("devices", True, _devices())
    yield Finding("launch", True, f"auto takes {': '.join(launch.automatic())}")
    threads = os.environ.get("OMP_NUM_THREADS", "1 without OMP_NUM_THREADS")
    yield Finding("threads", True, f"{threads} for each process of a run, of {os.cpu_count()} processors")
    kernels = native.load()
    yield Finding("CPU kernels", kernels.loaded, kernels.text)
    yield _package("accelerate", "pip install accelerate")
    yield _package("deepspeed", "needed for ZeRO only: pip install 'clars[deepspeed]'")
    fonts = len(list(Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf")))
    yield Finding("fonts", fonts > 0, f"{fonts} TrueType fonts come with matplotlib")


def data_sets() -> Iterator[Finding]:
    """Yield, for each data set that a recipe names, whether it is in reach without network."""
    found: dict[str, Data] = {}
    for _, recipe, _ in _recipes():
        if recipe is not None:
            found.setdefault(_title(recipe.data), recipe.data)
    for title, section in found.items():
        yield Finding(title, *data.reachable(section))


def recipes() -> Iterator[Finding]:
    """Yield, for each recipe, what it needs and whether this machine has it."""
    for name, recipe, problem in _recipes():
        if recipe is None:
            yield Finding(name, False, problem)
            continue
        here, _ = data.reachable(recipe.data)
        known = timm.is_model(recipe.model.name)
        lacks = [] if known else [f"timm {timm.__version__} has no model {recipe.model.name!r}"]
        text = "; ".join([f"{recipe.model.name} on {recipe.data.path or recipe.data.name}", *lacks])
        yield Finding(name, here and known, text)


def _recipes() -> Iterator[tuple[str, Recipe | None, str]]:
    for name in registry.names():
        try:
            yield name, load.load(name).recipe, ""
        except UserError as error:
            yield name, None, str(error)


def _title(section: Data) -> str:
    return section.path or " ".join(filter(None, [section.name, section.config]))


def _devices() -> str:
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if not names and torch.accelerator.is_available():
        names = [torch.accelerator.current_accelerator().type]
    return ", ".join([*names, "cpu"])


def _package(name: str, advice: str) -> Finding:
    try:
        return Finding(name, True, version(name))
    except PackageNotFoundError:
        return Finding(name, False, f"not installed: {advice}")
