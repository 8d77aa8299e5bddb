"""The record of a run: everything needed to believe its numbers or to repeat it."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from clars.errors import UserError
from clars.results.files import write_json

FILE = "run.json"


def finite(value: object) -> object:
    """Return None for an infinite or undefined number, which JSON cannot hold, and `value` otherwise."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Loss = Annotated[float | None, BeforeValidator(finite)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Git(_Part):
    """The commit of the repository that holds the recipe, and whether it had changes; None outside of git."""

    commit: str | None
    dirty: bool | None


class Final(_Part):
    """The last evaluation. Percentages; `top5` is None below six classes, all are None before any evaluation."""

    top1: float | None
    top5: float | None
    loss: Loss


class Best(_Part):
    """The highest top-1 accuracy (percent) over the epochs, and its epoch. For information: tables use `final`."""

    top1: float
    epoch: int


class Init(_Part):
    """What the weights began with: a checkpoint by name or folder, its SHA-256, and whether its head was kept."""

    checkpoint: str
    sha256: str
    head: Literal["kept", "new"]


class Record(_Part):
    """What `run.json` holds. The names are part of the public format.

    `settings` is the whole recipe as it was run, defaults and overrides included. `optimizer` and `schedule` repeat its
    sections, `schedule` with `peak_rate`. A loss that is not finite is stored as null. `wall_seconds` is the time of
    the whole run, `examples_per_second` that of training alone. `weights` tells which were evaluated and saved: the
    last ones or their moving average.
    """

    recipe: str
    version: str
    recipe_sha256: str
    overrides: list[str]
    seed: int
    command: str
    git: Git
    versions: dict[str, str]
    device: str
    threads: int
    strategy: str
    world_size: int
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    steps: int
    epochs: int
    settings: dict[str, object] | None = None
    optimizer: dict[str, object]
    schedule: dict[str, object]
    final: Final
    best: Best | None
    wall_seconds: float
    examples_per_second: Annotated[float | None, BeforeValidator(finite)]
    status: Literal["finished", "diverged", "interrupted"]
    weights: Literal["last", "ema"] = "last"
    init: Init | None = None

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read a record.

        Raises:
            UserError: the file cannot be read or is no record.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            raise UserError(f"{path} is no record of a run: {first_problem(error)}. Remove it.") from None

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))


def first_problem(error: ValidationError) -> str:
    """Return the key and the text of the first thing that pydantic found."""
    detail = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, detail["loc"])), detail["msg"]]))
