"""`checkpoints/manifest.json`: what is published, from which run, and the SHA-256 of every file."""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from clars.checkpoints.form import FILES
from clars.errors import CheckpointError, nearest
from clars.recipes import registry
from clars.recipes.schema import Settings
from clars.results.files import write_json
from clars.results.record import first_problem

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
            f"{name[:120]!r} cannot be the name of a checkpoint: take small letters and digits, with single . _ or - "
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
        return self


class Manifest(Settings):
    """All entries, by name."""

    format: Literal[1] = 1
    checkpoints: dict[Annotated[str, AfterValidator(check_name)], Entry] = Field(default_factory=dict)


def root() -> Path:
    """Return $CLARS_CHECKPOINTS, else the folder `checkpoints` beside the recipes."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).resolve() if chosen else registry.root().parent / "checkpoints"


def load(folder: Path | None = None) -> Manifest:
    """Read the manifest of a folder, by default of `root()`; an empty one where there is none.

    Raises:
        CheckpointError: it cannot be used.
    """
    path = (folder or root()) / FILE
    if not path.exists():
        return Manifest()
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path} cannot be used: {first_problem(error)}.") from None


def find(name: str) -> Entry:
    """Return the entry of a checkpoint.

    Raises:
        CheckpointError: there is none, or the manifest cannot be used.
    """
    known = load().checkpoints
    if name not in known:
        near = nearest(name, known)
        listed = f"There are: {', '.join(sorted(known))}." if known else "None is published there."
        raise CheckpointError(f"{name!r} is no checkpoint of {root() / FILE}.{near} {listed}")
    return known[name]


def add(name: str, entry: Entry) -> Path:
    """Add or replace an entry; return the manifest's path."""
    known = load().checkpoints | {check_name(name): entry}
    whole = Manifest(checkpoints=dict(sorted(known.items())))
    write_json(root() / FILE, whole.model_dump(mode="json"))
    return root() / FILE


def describe(path: Path) -> File:
    """Return size and SHA-256 of a file."""
    with path.open("rb") as file:
        return File(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def check_files(folder: Path, entry: Entry) -> None:
    """Check that a folder holds an entry's files.

    Raises:
        CheckpointError: one is missing, or has another content.
    """
    for name, wanted in entry.files.items():
        path = folder / name
        if not path.is_file() or path.is_symlink():
            raise CheckpointError(f"{path} is missing, or is no ordinary file.")
        if (found := describe(path)) != wanted:
            raise CheckpointError(
                f"{path} is not what was published: it has {found.bytes} bytes and SHA-256 {found.sha256}, in the "
                f"manifest stand {wanted.bytes} and {wanted.sha256}."
            )
