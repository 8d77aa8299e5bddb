"""Beginning with the weights that timm has of a network, or with those of a file."""

from pathlib import Path

import timm
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import load_state_dict
from torch import Tensor, nn

from clars.errors import CheckpointError, printable, shortened
from clars.lab import digests
from clars.lab.checkpoints import hub
from clars.lab.models.factory import arguments
from clars.lab.recipes.schema import Recipe
from clars.lab.runs.record import Init

FILE = "model.safetensors"  # what timm calls a network's weights on the Hub
PROBE_SECONDS = 10


def begin(recipe: Recipe, network: nn.Module) -> Init:
    """Give a network the weights that `model.pretrained` names; its classifier keeps its own where it is another.

    timm's own code fits them to the network: names of older layers, numbers of channels, sizes of positions.

    Args:
        recipe: what the network was made from.
        network: made by timm; its classifier may have been taken away.

    Raises:
        CheckpointError: the weights are not in reach, or are not those of this network.
    """
    named, origin = recipe.model.pretrained, recipe.model.name
    path, origin = (Path(named).expanduser(), named) if isinstance(named, str) else _from_hub(origin)
    where = f"model.pretrained={named!r}" if isinstance(named, str) else origin
    if not path.is_file():
        raise CheckpointError(f"{where} is not a file. Give one of weights, or true for those that timm has.")
    try:
        stored, kept = _with_classifier(load_state_dict(str(path)), network)
        network.load_state_dict(_fitted(recipe, network, stored))
    except Exception as error:  # of broken files, and of what timm has for each kind of network
        raise CheckpointError(
            f"{where} does not fit {recipe.model.name}: {printable(shortened(str(error), 500))}. Choose weights of this"
            " network, with the same model.arguments."
        ) from error
    return Init(checkpoint=origin, sha256=digests.of_file(path), head="kept" if kept else "new")


def _from_hub(name: str) -> tuple[Path, str]:
    """Return the file of a network's weights, downloaded once, and what it is called on the Hub."""
    repo = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        return Path(hf_hub_download(repo, FILE, local_files_only=True)), repo
    except LocalEntryNotFoundError:
        pass
    remedy = "Download it where there is network, or give model.pretrained=FILE."
    with hub.explained(f"model.pretrained: {repo} on {hub.endpoint()}", remedy):
        HfApi().model_info(repo, timeout=PROBE_SECONDS)  # without network a download is tried for half a minute
        return Path(hf_hub_download(repo, FILE)), repo


def _with_classifier(stored: dict[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], bool]:
    """Return weights with a classifier that fits the network, and whether it is that of the weights."""
    names = network.pretrained_cfg["classifier"]
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names or ()))
    own = {key: value for key, value in network.state_dict().items() if key.startswith(prefixes)}
    if own and all(key in stored and stored[key].shape == value.shape for key, value in own.items()):
        return stored, True
    return {key: value for key, value in stored.items() if not key.startswith(prefixes)} | own, False


def _fitted(recipe: Recipe, network: nn.Module, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict that timm makes of weights, of which none may be missing or left over."""
    data, classes = recipe.data, network.num_classes
    overlay = {"state_dict": stored, "num_classes": classes, "label_offset": 0, "custom_load": False}
    given = arguments(recipe.model, data.channels, data.image_size)
    made = timm.create_model(
        recipe.model.name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **given
    )
    return made.state_dict()
