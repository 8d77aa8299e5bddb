"""The state of an unfinished run, in one safetensors file: whole tensors by name, whatever held them.

It belongs to no strategy and no number of processes. It is written beside the last one and takes its place when it
is complete, so at every moment one whole state is on disk. It carries the SHA-256 of all it says.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clars.errors import UserError, quoted
from clars.lab import digests, strict_json
from clars.lab.files import write_tensors
from clars.lab.recipes.load import Resolved
from clars.lab.runs.metrics import Mark
from clars.lab.runs.record import first_problem

ANEW = "Start anew with --overwrite."


@dataclass(frozen=True)
class Progress:
    """How far a run has come. Seconds are of this run's training and of the whole, over all its parts.

    `step` counts optimizer steps and `epoch` the epochs that are over and evaluated; `loss_sum` adds the mean loss of
    each step since then, and `first_losses` are such sums within the first epoch, none after it. `loss_scale` is the
    state of the scaler of float16's gradients, `noise_every` the number of steps between lines of the noise scale,
    None where it is not measured. `mixed_precision` is what is computed in, as a record has it; None in states of an
    older format.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: NonNegativeInt = 0
    step: NonNegativeInt = 0
    loss_sum: float = 0.0
    best_top1: Annotated[float, Field(ge=0, le=100)] | None = None
    best_epoch: NonNegativeInt | None = None
    train_seconds: NonNegativeFloat = 0.0
    wall_seconds: NonNegativeFloat = 0.0
    loss_scale: dict[str, int | float] | None = None
    noise_every: PositiveInt | None = None
    mixed_precision: str | None = None
    first_losses: tuple[float, ...] = ()

    def require_precision(self, wanted: str, path: Path) -> None:
        """Check that the run goes on in the precision it began in: its record names one.

        Raises:
            UserError: it began in another.
        """
        if self.mixed_precision not in (None, wanted):
            raise UserError(
                f"{path} is of a run in mixed precision {self.mixed_precision}, not {wanted}. Go on with "
                f"--mixed-precision {self.mixed_precision}, or: {ANEW}"
            )

    def check(self, steps_per_epoch: int, epochs: int, path: Path) -> None:
        """Check that a run of so many steps can have come so far.

        Raises:
            UserError: it cannot: its data have changed, or the state has.
        """
        over = self.epoch * steps_per_epoch
        if not (self.epoch <= epochs and over <= self.step < over + steps_per_epoch) or (
            self.epoch == epochs and self.step > over
        ):
            raise UserError(
                f"{path} is after {self.epoch} epochs and step {self.step}, which is no place in a run of {epochs} "
                f"epochs of {steps_per_epoch} steps: the number of training examples has changed. {ANEW}"
            )


@dataclass(frozen=True)
class State:
    """What a run goes on from: weights and buffers, and momentum, by name in the model; and how far it is.

    `average` is the moving average of weights and buffers, where the recipe asks for one. `marks` tells how far the
    files of lines beside the state had come, by name. `noise` is the state of a `NoiseScale`, a tensor [3] by layer.
    """

    model: dict[str, Tensor] = field(default_factory=dict)
    momentum: dict[str, Tensor] = field(default_factory=dict)
    progress: Progress = Progress()
    average: dict[str, Tensor] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    noise: dict[str, Tensor] = field(default_factory=dict)


def write(path: Path, state: State, identity: dict[str, str]) -> None:
    """Write the state of a run, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in state.model.items()}
    tensors |= {f"momentum.{name}": value for name, value in state.momentum.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    tensors |= {f"noise.{name}": value for name, value in state.noise.items()}
    marks = {name: asdict(mark) for name, mark in state.marks.items()}
    parts = {"progress": asdict(state.progress), "identity": identity, "marks": marks}
    texts = {name: json.dumps(value) for name, value in parts.items()}
    write_tensors(path, tensors, texts | {"sha256": digests.of_tensors(tensors, texts)})


def read(path: Path, identity: dict[str, str]) -> State:
    """Read the state of a run; that of a beginning where there is no file.

    Raises:
        UserError: the file is damaged, or is of another recipe, seed or settings than `identity` says.
    """
    if not path.exists():
        return State()
    try:
        with safe_open(path, "pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        stated = texts.pop("sha256", None)
        if stated is None:
            raise ValueError("it has no digest, as states of older versions")
        if stated != digests.of_tensors(tensors, texts):
            raise ValueError("it is not what was written, by its own digest")
        saved = _parsed(dict[str, str], texts, "identity")
        state = State(
            *(_below(prefix, tensors) for prefix in ("model.", "momentum.")),
            _parsed(Progress, texts, "progress"),
            _below("average.", tensors),
            _parsed(dict[str, Mark], texts, "marks"),
            _below("noise.", tensors),
        )
    except ValidationError as error:
        raise UserError(f"{path} cannot be resumed from: {first_problem(error)}. {ANEW}") from None
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{path} cannot be resumed from: {error}. {ANEW}") from None
    for key, value in identity.items():
        if saved.get(key) != value:
            raise UserError(
                f"{path} is of a run with {key} {quoted(saved.get(key))}, not {value!r}. Choose another --out, or "
                "start anew with --overwrite."
            )
    return state


def check_tensors(
    state: State,
    model: Mapping[str, Tensor],
    momentum: Mapping[str, Tensor],
    averaged: bool,
    noise: Mapping[str, Tensor],
    path: Path,
) -> None:
    """Check that a state's tensors are those of a run, before any is put into place.

    Args:
        state: what was read, or that of a beginning.
        model: the state dict that the run trains, whose names and shapes weights and average must have.
        momentum: a tensor for each name that momentum may have, of the shape that it must have.
        averaged: whether the run has an average.
        noise: a tensor for each layer whose noise scale is measured, of the shape that its state must have.
        path: the state's file.

    Raises:
        UserError: one is missing, unknown, or of another shape.
    """
    if state == State():
        return
    average = model if averaged else {}
    parts = {"model": (state.model, model), "average": (state.average, average), "momentum": (state.momentum, momentum)}
    parts["noise"] = (state.noise, noise)
    for part, (found, wanted) in parts.items():
        if part != "momentum" and (lacking := sorted(wanted.keys() - found.keys())):
            raise UserError(f"{path} lacks {part}.{lacking[0]}. {ANEW}")
        for name, tensor in found.items():
            if name not in wanted or wanted[name].shape != tensor.shape:
                has = f"has with the shape {tuple(wanted[name].shape)}" if name in wanted else "does not have"
                raise UserError(f"{path}: {part}.{name}, of shape {tuple(tensor.shape)}, the run {has}. {ANEW}")


def identity(resolved: Resolved, seed: int) -> dict[str, str]:
    """Return what must be the same when a run goes on."""
    return {
        "recipe": f"{resolved.name}@{resolved.version}",
        "recipe_sha256": resolved.sha256,
        "overrides": " ".join(resolved.overrides),
        "seed": str(seed),
    }


def _parsed(kind: type, texts: dict[str, str], name: str):
    return TypeAdapter(kind).validate_json(json.dumps(strict_json.parse(texts[name].encode())), strict=True)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
