"""What a checkpoint is: five files that agree with each other, read without trusting any of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor, nn

from clars.errors import CheckpointError, printable
from clars.lab import models
from clars.lab.checkpoints import architecture, config, folder, header, manifest, reading, weights
from clars.lab.checkpoints.config import Config
from clars.lab.checkpoints.folder import CARD, CONFIG, FILES, LIMIT, RECIPE, RECORD, WEIGHTS
from clars.lab.checkpoints.manifest import Entry
from clars.lab.files import write_json, write_text
from clars.lab.recipes.reading import parse
from clars.lab.recipes.schema import Recipe
from clars.lab.recipes.writing import dump
from clars.lab.runs.record import Record, first_problem

__all__ = ["CARD", "CONFIG", "FILES", "LIMIT", "RECIPE", "RECORD", "WEIGHTS", "Checkpoint", "read", "write"]


@dataclass(frozen=True)
class Checkpoint:
    """What a folder held whose files agree with each other, as it was read at once; made by `read`, which checks that.

    Attributes:
        path: of the folder.
        files: their content, by name.
        entry: of the manifest, with which the files were compared; None for a folder that is none of its names.
    """

    path: Path
    config: Config
    recipe: Recipe
    record: Record
    files: Mapping[str, bytes] = field(repr=False)
    entry: Entry | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights.

        Raises:
            CheckpointError: their file was changed while it was read.
        """
        return weights.load(self.files[WEIGHTS], self.path / WEIGHTS)

    def sha256(self) -> str:
        """Return the SHA-256 of the file of weights that `tensors` come from."""
        return hashlib.sha256(self.files[WEIGHTS]).hexdigest()

    def network(self) -> nn.Module:
        """Return the network with these weights, in evaluation mode, described to timm as if it had read the folder."""
        data = self.recipe.data
        # Tried on an image it was when the folder was read, without memory: an image may be large, and its maps larger.
        network = models.create(self.recipe.model, self.config.num_classes, data.channels, data.image_size, trial=False)
        network.load_state_dict(self.tensors())
        network.pretrained_cfg = network.default_cfg = self.config.for_timm()
        return network.eval()


def read(path: Path, entry: Entry | None = None) -> Checkpoint:
    """Read a checkpoint's folder, each file once, and check all of it that can be checked without data.

    Args:
        path: of the folder.
        entry: what the files must be, by the manifest.

    Raises:
        CheckpointError: a file is missing, too large, no ordinary file, not that of the entry, or disagrees with the
            others.
    """
    files = {name: _content(path / name, entry) for name in FILES if name != WEIGHTS}
    loaded = reading.read(Config, files[CONFIG], path / CONFIG)
    record = reading.read(Record, files[RECORD], path / RECORD)
    with folder.opened(path / WEIGHTS) as (file, size):
        if entry:  # nothing is made of bytes that are not those that were published
            files[WEIGHTS] = file.read(min(size, entry.files[WEIGHTS].bytes) + 1)
            manifest.check(entry, WEIGHTS, files[WEIGHTS], path)
            file.seek(0)
        stored = header.read(file, size, path / WEIGHTS)
        recipe = _recipe(files[RECIPE], record, path)
        config.check(loaded, recipe)
        network = architecture.build(recipe, loaded.num_classes, stored)
        config.check_network(loaded, network)
        header.check(stored, network.state_dict(), path / WEIGHTS)
        if not entry:
            file.seek(0)
            files[WEIGHTS] = file.read(size)
    _require_of_the_run(files[WEIGHTS], record, path)
    if entry:
        manifest.check_record(entry, record, recipe, path)
    return Checkpoint(path, loaded, recipe, record, files, entry)


def write(path: Path, loaded: Config, recipe: Recipe, record: Record, content: bytes) -> None:
    """Write all files but the card; `content` is the run's file of weights, of which the record has a digest."""
    (path / WEIGHTS).write_bytes(content)
    write_json(path / CONFIG, loaded.model_dump(mode="json"))
    write_text(path / RECIPE, dump(recipe.model_dump(mode="json")))
    record.write(path / RECORD)


def require_result(record: Record, where: Path) -> None:
    """Raise CheckpointError unless a record is of a run that finished and says how good it was."""
    if record.status != "finished":
        raise CheckpointError(f"{where} is of a run that {record.status}, not of one that finished.")
    if record.final.top1 is None or not 0 <= record.final.top1 <= 100 or record.final.loss is None:
        raise CheckpointError(
            f"{where}: final has top-1 {record.final.top1} % and loss {record.final.loss}; a finished run has both. "
            "Run it again."
        )


def _require_of_the_run(content: bytes, record: Record, path: Path) -> None:
    """Check that weights are those whose digest the record has, if it has one."""
    stated = record.digests and record.digests.weights
    if stated and hashlib.sha256(content).hexdigest() != stated:
        raise CheckpointError(
            f"{path / WEIGHTS} is not what the run saved: by {RECORD} beside it, its SHA-256 is {stated}."
        )


def _content(path: Path, entry: Entry | None) -> bytes:
    found = folder.content(path)
    if entry:
        manifest.check(entry, path.name, found, path.parent)
    return found


def _recipe(content: bytes, record: Record, path: Path) -> Recipe:
    """Return the recipe, which is also that of the record."""
    require_result(record, path / RECORD)
    try:
        recipe = Recipe.model_validate(parse(content.decode("utf-8"), str(path / RECIPE)))
        run = Recipe.model_validate(record.settings)
        same = json.dumps(run.model_dump(), sort_keys=True) == json.dumps(recipe.model_dump(), sort_keys=True)
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: {RECIPE}, or the settings in {RECORD}: {printable(first_problem(error))}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path / RECIPE} cannot be read: {printable(str(error))}") from None
    if not same:  # type by type: as values, true equals 1
        raise CheckpointError(f"{path / RECIPE} is not the recipe that {RECORD} says was run.")
    return recipe
