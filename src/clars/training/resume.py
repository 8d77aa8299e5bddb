"""The state of an unfinished run, in one safetensors file: written whole or not at all, after every epoch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from clars.errors import UserError
from clars.recipes.load import Resolved
from clars.results.files import replacing

FILE = "resume.safetensors"


@dataclass(frozen=True)
class Progress:
    """How far a run has come. Seconds are of this run's training and of the whole, over all its parts."""

    epoch: int = 0
    step: int = 0
    best_top1: float | None = None
    best_epoch: int | None = None
    train_seconds: float = 0.0
    wall_seconds: float = 0.0
    loss_scale: float | None = None


def save(path: Path, model: nn.Module, optimizer: Optimizer, progress: Progress, identity: dict[str, str]) -> None:
    """Write weights, buffers, momentum by parameter name, and how far the run is."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"momentum.{name}": value for name, value in _momentum(model, optimizer).items()}
    metadata = {"progress": json.dumps(asdict(progress)), "identity": json.dumps(identity)}
    with replacing(path) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)


def load(path: Path, model: nn.Module, optimizer: Optimizer, identity: dict[str, str]) -> Progress:
    """Put the saved state into model and optimizer; return how far the run had come.

    Raises:
        UserError: the file is damaged, or is of another recipe, seed or settings than `identity` says.
    """
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
    _split_into(tensors, model, optimizer)
    return progress


def identity(resolved: Resolved, seed: int) -> dict[str, str]:
    """Return what must be the same when a run goes on."""
    return {
        "recipe": resolved.full_name,
        "recipe_sha256": resolved.sha256,
        "overrides": " ".join(resolved.overrides),
        "seed": str(seed),
    }


def _momentum(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    buffers = {name: optimizer.state[p].get("momentum_buffer") for name, p in model.named_parameters()}
    return {name: value for name, value in buffers.items() if value is not None}


def _split_into(tensors: dict[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            value = tensors[f"momentum.{name}"]
            optimizer.state[parameter]["momentum_buffer"] = value.to(parameter.device, copy=True)


def clear(folder: Path) -> None:
    """Remove the state of a run that is over."""
    (folder / FILE).unlink(missing_ok=True)
