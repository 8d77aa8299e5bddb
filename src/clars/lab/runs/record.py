"""The record of a run: everything needed to believe its numbers or to repeat it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from clars.errors import UserError, quoted, shortened
from clars.lab import digests, seeds, strict_json
from clars.lab.files import write_json

REMEDY = "Restore it, or remove it and run again."
# The rules by which runs and searches are made, as docs/tables.md states them; a change of what numbers mean counts up.
PROTOCOL = 2


def finite(value: object) -> object:
    """Return None for an infinite or undefined number, which JSON cannot hold, and `value` otherwise."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Loss = Annotated[float | None, BeforeValidator(finite)]
Percent = Annotated[float, Field(ge=0, le=100)]
Seed = Annotated[int, Field(ge=0, le=seeds.LARGEST)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class Git(_Part):
    """The commit of the repository that holds the recipe, and whether it had changes; None outside of git."""

    commit: str | None
    dirty: bool | None


class Final(_Part):
    """The last evaluation. Percentages; `top5` is None below six classes, all are None before any evaluation."""

    top1: Percent | None
    top5: Percent | None
    loss: Loss


class Best(_Part):
    """The highest top-1 accuracy (percent) over the epochs, and its epoch. For information: tables use `final`."""

    top1: Percent
    epoch: PositiveInt


class Init(_Part):
    """What the weights began with: a checkpoint by name or folder, its SHA-256, and whether its head was kept."""

    checkpoint: str
    sha256: str
    head: Literal["kept", "new"]


class Digests(_Part):
    """SHA-256 of the record without this one, in the form of `digests.of_value`, and of the files beside it.

    A file that the run did not write has none, nor has one to which an interrupted run may still add.
    """

    record: Digest
    metrics: Digest | None = None
    layers: Digest | None = None
    noise: Digest | None = None
    weights: Digest | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, str | None]:
        """Leave `noise` out where there is none: such records stay, byte for byte, what they were before it."""
        return {key: value for key, value in write(self).items() if key != "noise" or value is not None}


class Record(_Part):
    """What `run.json` holds. The names are part of the public format.

    `settings` is the whole recipe as it was run, defaults and overrides included. `optimizer` and `schedule` repeat its
    sections, `schedule` with `peak_rate`. A loss that is not finite is stored as null. `wall_seconds` is the time of
    the whole run, `examples_per_second` that of training alone. `weights` tells which were evaluated and saved: the
    last ones or their moving average. `mixed_precision` is accelerate's word for what the network computed in, such as
    no or bf16, and `protocol` numbers the rules by which the run was made. Those two and `digests` are None in records
    of an older format alone.
    """

    recipe: str
    version: str
    recipe_sha256: str
    overrides: list[str]
    seed: Seed
    command: str
    git: Git
    versions: dict[str, str]
    device: str
    threads: PositiveInt
    strategy: str
    mixed_precision: str | None = None
    world_size: PositiveInt
    global_batch_size: PositiveInt
    micro_batch_size: PositiveInt
    accumulation: PositiveInt
    steps: NonNegativeInt
    epochs: NonNegativeInt
    settings: dict[str, object] | None = None
    optimizer: dict[str, object]
    schedule: dict[str, object]
    final: Final
    best: Best | None
    wall_seconds: NonNegativeFloat
    examples_per_second: Annotated[NonNegativeFloat | None, BeforeValidator(finite)]
    status: Literal["finished", "diverged", "interrupted"]
    weights: Literal["last", "ema"] = "last"
    init: Init | None = None
    protocol: PositiveInt | None = None
    digests: Digests | None = None

    @model_validator(mode="before")
    @classmethod
    def _unchanged(cls, content: object) -> object:
        """Refuse what a file says if its own digest is of something else."""
        stated = content.get("digests") if isinstance(content, dict) else None
        if isinstance(stated, dict) and stated.get("record") != (found := _own_digest(content)):
            raise ValueError(f"its digest is {quoted(stated.get('record'))}, its content has {found}: it was changed")
        return content

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Leave out what older records do not have: they stay, byte for byte, what they were."""
        newer = ("mixed_precision", "protocol")
        return {key: value for key, value in write(self).items() if key not in newer or value is not None}

    @property
    def precision(self) -> str:
        """What the network computed in; records of an older format are of times that knew float32 alone."""
        return self.mixed_precision or "no"

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record.

        Raises:
            UserError: the file cannot be read or is no record, or was changed after it was written.
        """
        return cls.parse(strict_json.read(path, "record of a run", REMEDY), path)

    @classmethod
    def parse(cls, content: object, path: Path) -> "Record":
        """Return the record that a JSON value of a file holds.

        Raises:
            UserError: as `read`.
        """
        try:
            return cls.model_validate(content, strict=True)
        except ValidationError as error:
            raise UserError(f"{path} is no record of a run: {first_problem(error)}. {REMEDY}") from None

    def sealed(self, **files: str | None) -> "Record":
        """Return the record with the digests of files (those of `layout.BESIDE`) and its own."""
        return self.model_copy(update={"digests": Digests(record="0" * 64, **files)})._resealed()

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all, with the digest of what is written if it has one."""
        write_json(path, self._resealed().model_dump(mode="json"))

    def _resealed(self) -> "Record":
        if self.digests is None:
            return self
        own = _own_digest(self.model_dump(mode="json"))
        return self.model_copy(update={"digests": self.digests.model_copy(update={"record": own})})


@dataclass(frozen=True)
class Run:
    """A record, its lines of metrics (one an epoch), and the file that proves them."""

    record: Record
    metrics: list[dict]
    path: Path


def flat(settings: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Yield settings by their whole names, such as optimizer.momentum."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _own_digest(content: dict) -> str:
    others = {key: value for key, value in content["digests"].items() if key != "record"}
    return digests.of_value(content | {"digests": others})


def first_problem(error: ValidationError) -> str:
    """Return the key and the text of the first thing that pydantic found."""
    detail = error.errors()[0]
    place = ".".join(map(str, detail["loc"]))
    return shortened(": ".join(filter(None, [place, detail["msg"].removeprefix("Value error, ")])), 500)
