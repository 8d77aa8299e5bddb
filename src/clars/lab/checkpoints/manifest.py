"""`checkpoints/manifest.json`: what is published, from which run, and the SHA-256 of every file."""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from clars.errors import CheckpointError, nearest, quoted
from clars.lab import shipped
from clars.lab.checkpoints import folder, reading
from clars.lab.checkpoints.folder import FILES, LIMIT, WEIGHTS
from clars.lab.files import write_json
from clars.lab.recipes import registry
from clars.lab.recipes.schema import Recipe, Settings
from clars.lab.runs.record import Record

FILE = "manifest.json"
VARIABLE = "CLARS_CHECKPOINTS"
NAME = r"[a-z0-9]+([._-][a-z0-9]+)*"  # also the name of a folder: no separators, no "..", the same on every system
STORES = ("hf", "https", "http", "s3", "gs", "gcs", "az", "abfs", "sftp", "ssh", "ftp", "file")

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Percent = Annotated[float, Field(ge=0, le=100)]


def check_name(name: str) -> str:
    """Return a name that can be that of a checkpoint, or raise CheckpointError."""
    if len(name) > 96 or not re.fullmatch(NAME, name):
        raise CheckpointError(
            f"{quoted(name)} cannot be the name of a checkpoint: take small letters and digits, with single . _ or - "
            "between them, such as digits-resnet8-clars."
        )
    return name


def _check_address(address: str) -> str:
    store = address.partition("://")[0]
    if store not in STORES or "::" in address or not address.isprintable():
        raise ValueError(f"an address begins with one of {', '.join(STORES)} and ://, such as hf://ORG/NAME@REVISION")
    return address


class File(Settings):
    """What one file must be."""

    sha256: Digest
    bytes: PositiveInt


class Accuracy(Settings):
    """Top-1 accuracy in percent, and over how many seeds it was measured.

    `value` is of these weights, from the record of the run; a new measurement agrees within `tolerance` points. `mean`
    and `half_width` (of the 95 % interval, by Student's t) are over the `n` finished runs of the same settings.
    """

    data: str
    split: Literal["test", "validation"]
    value: Percent
    tolerance: Percent
    n: PositiveInt
    mean: Percent
    half_width: Annotated[float, Field(ge=0)] | None

    @model_validator(mode="after")
    def _of_one_or_several(self) -> "Accuracy":
        if (self.n > 1) != (self.half_width is not None):
            raise ValueError("there is a half_width where n is above 1, and only there")
        return self


class Entry(Settings):
    """One checkpoint. `address` is the folder to pull the files from; without one they lie beside the manifest."""

    architecture: str
    recipe: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    version: Annotated[str, Field(pattern=r"^v\d+$")]
    recipe_sha256: Digest
    overrides: list[str]
    seed: NonNegativeInt
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    dirty: bool | None
    weights: Literal["last", "ema"]
    top1: Accuracy
    files: dict[Literal[FILES], File]
    address: Annotated[str, AfterValidator(_check_address)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Entry":
        if set(self.files) != set(FILES):
            raise ValueError(f"files must be {', '.join(FILES)}")
        if large := [name for name, file in self.files.items() if name != WEIGHTS and file.bytes > LIMIT]:
            raise ValueError(f"{large[0]} has more than the {LIMIT} bytes that are read")
        return self


class Manifest(Settings):
    """All entries, by name."""

    format: Literal[1] = 1
    checkpoints: dict[Annotated[str, AfterValidator(check_name)], Entry] = Field(default_factory=dict)


def root() -> Path:
    """Return $CLARS_CHECKPOINTS, else the folder `checkpoints` beside the recipes."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).resolve() if chosen else registry.root().parent / "checkpoints"


def load(place: Path | None = None) -> Manifest:
    """Read the manifest of a folder, by default of `root()`; an empty one where there is none.

    Raises:
        CheckpointError: it cannot be used.
    """
    path = (place or root()) / FILE
    if not path.exists():
        return Manifest()
    return reading.read(Manifest, folder.content(path, links=True), path)


def find(name: str) -> Entry:
    """Return the entry of a checkpoint.

    Raises:
        CheckpointError: there is none, or the manifest cannot be used.
    """
    known = {name: entry for name, (entry, _) in every().items()}
    if name not in known:
        near = nearest(name, known)
        listed = f"There are: {', '.join(sorted(known))}." if known else "None is published there."
        raise CheckpointError(f"{quoted(name)} is no checkpoint of {root() / FILE}.{near} {listed}")
    return known[name]


def every() -> dict[str, tuple[Entry, Path]]:
    """Return all entries by name, each with the folder of its manifest: those of `root()`, then the package's own.

    Where $CLARS_CHECKPOINTS names a folder, that is all there is.
    """
    places = [root()] if os.environ.get(VARIABLE) else [root(), shipped.folder("checkpoints")]
    found: dict[str, tuple[Entry, Path]] = {}
    for place in places:
        for name, entry in load(place).checkpoints.items():
            found.setdefault(name, (entry, place))
    return found


def add(name: str, entry: Entry) -> Path:
    """Add or replace an entry; return the manifest's path."""
    known = load().checkpoints | {check_name(name): entry}
    whole = Manifest(checkpoints=dict(sorted(known.items())))
    write_json(root() / FILE, whole.model_dump(mode="json"))
    return root() / FILE


def facts(record: Record, recipe: Recipe) -> dict[str, object]:
    """Return what an entry repeats of a record and its recipe, by the names of both.

    Those of the accuracy stand under `top1`.
    """
    return {
        "architecture": recipe.model.name.partition(".")[0],
        **{key: getattr(record, key) for key in ("recipe", "version", "recipe_sha256", "overrides", "seed", "weights")},
        **{key: getattr(record.git, key) for key in ("commit", "dirty")},
        "top1": {"data": recipe.data.name, "split": recipe.evaluation.split, "value": record.final.top1},
    }


def check_record(entry: Entry, record: Record, recipe: Recipe, place: Path) -> None:
    """Check that an entry says what the record of its checkpoint says.

    Raises:
        CheckpointError: it says something else.
    """
    said, wanted = entry.model_dump(), facts(record, recipe)
    pairs = {key: (said[key], value) for key, value in wanted.items() if key != "top1"}
    pairs |= {f"top1.{key}": (said["top1"][key], value) for key, value in wanted["top1"].items()}
    for key, (found, value) in pairs.items():
        if found != value:
            raise CheckpointError(
                f"{place}: {key} is {quoted(found)} in the manifest, and {quoted(value)} by the record of the run."
            )


def describe(content: bytes) -> File:
    """Return size and SHA-256 of what a file holds."""
    return File(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def check(entry: Entry, name: str, content: bytes, place: Path) -> None:
    """Check that what was read of a file is what was published.

    Raises:
        CheckpointError: it has another content.
    """
    wanted, found = entry.files[name], hashlib.sha256(content).hexdigest()
    if found != wanted.sha256 or len(content) != wanted.bytes:
        raise CheckpointError(
            f"{place / name} is not what was published: its SHA-256 is {found}, or it has more bytes; in the manifest "
            f"stand {wanted.sha256} and {wanted.bytes} bytes."
        )
