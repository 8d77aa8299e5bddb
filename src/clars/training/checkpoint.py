"""The state of an unfinished run, in one safetensors file: whole tensors by name, whatever held them.

It belongs to no strategy and no number of processes. It is written beside the last one and takes its place when it
is complete, so at every moment one whole state is on disk.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clars.errors import UserError
from clars.recipes.load import Resolved
from clars.results.files import write_tensors

FILE = "resume.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run has come. Seconds are of this run's training and of the whole, over all its parts.

    `step` counts optimizer steps and `epoch` the epochs that are over and evaluated; `loss_sum` adds the mean loss of
    each step since then. `loss_scale` is the state of the scaler of float16's gradients.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_top1: float | None = None
    best_epoch: int | None = None
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    loss_scale: dict[str, float] | None = None


@dataclass(frozen=True)
class State:
    """What a run goes on from: weights and buffers, and momentum, by name in the model; and how far it is.

    `average` is the moving average of weights and buffers, where the recipe asks for one.
    """

    model: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)
    progress: Progress = Progress()
    average: dict[str, Tensor] = field(default_factory=dict)


def write(path: Path, state: State, identity: dict[str, str]) -> None:
    """Write the state of a run, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in state.model.items()}
    tensors |= {f"momentum.{name}": value for name, value in state.momentum.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    metadata = {"progress": json.dumps(asdict(state.progress)), "identity": json.dumps(identity)}
    write_tensors(path, tensors, metadata)


def read(path: Path, identity: dict[str, str]) -> State:
    """Read the state of a run; that of a beginning where there is no file.

    Raises:
        UserError: the file is damaged, or is of another recipe, seed or settings than `identity` says.
    """
    if not path.exists():
        return State()
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        saved, progress = json.loads(metadata["identity"]), Progress(**json.loads(metadata["progress"]))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be resumed from: {error!r}. Start anew with --overwrite.") from None
    differing = [key for key, value in identity.items() if saved.get(key) != value]
    if differing:
        key = differing[0]
        raise UserError(
            f"{path} is of a run with {key} {saved.get(key)!r}, not {identity[key]!r}. Choose another --out, or start "
            "anew with --overwrite."
        )
    return State(_below("model.", tensors), _below("momentum.", tensors), progress, _below("average.", tensors))


def identity(resolved: Resolved, seed: int) -> dict[str, str]:
    """Return what must be the same when a run goes on."""
    return {
        "recipe": resolved.full_name,
        "recipe_sha256": resolved.sha256,
        "overrides": " ".join(resolved.overrides),
        "seed": str(seed),
    }


def clear(folder: Path) -> None:
    """Remove the state of a run that is over."""
    (folder / FILE).unlink(missing_ok=True)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
