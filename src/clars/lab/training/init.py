"""Beginning with the weights of a published checkpoint instead of at random."""

from torch import nn

from clars.errors import CheckpointError
from clars.lab.checkpoints import config, pull
from clars.lab.data import Splits
from clars.lab.recipes.load import Resolved
from clars.lab.runs.record import Init
from clars.lab.training import pretrained


def begin(resolved: Resolved, model: nn.Module, splits: Splits) -> Init | None:
    """Give a network the weights that the recipe's `init` or `model.pretrained` names; return what was done, or None.

    The classifier keeps its fresh weights where the classes are others, with `init` by number or by name.

    Raises:
        CheckpointError: there is no such checkpoint, or it is of another architecture or another input.
    """
    name = resolved.recipe.init
    if resolved.recipe.model.pretrained:
        return pretrained.begin(resolved.recipe, model)
    if name is None:
        return None
    found = pull.read(name)
    if found.config.architecture != config.architecture(resolved.recipe):
        raise CheckpointError(
            f"init={name!r} is a {found.config.architecture}, the recipe trains {resolved.recipe.model.name}. Set "
            f"model.name={found.config.architecture}, or choose another checkpoint."
        )
    weights = found.tensors()
    fresh = {} if _same_classes(found.config, splits) else _classifier(model)
    present = model.state_dict()
    for key, value in present.items():
        if key not in fresh and (key not in weights or weights[key].shape != value.shape):
            had = tuple(weights[key].shape) if key in weights else "missing"
            raise CheckpointError(
                f"init={name!r}: {key} is {had} there and {tuple(value.shape)} here. Give the network the same "
                "model.arguments, data.channels and data.image_size."
            )
    model.load_state_dict({key: fresh.get(key, weights.get(key)) for key in present})
    return Init(checkpoint=name, sha256=found.sha256(), head="new" if fresh else "kept")


def _same_classes(there: config.Config, splits: Splits) -> bool:
    if None not in (there.label_names, splits.class_names):
        return there.label_names == splits.class_names
    return there.num_classes == splits.num_classes


def _classifier(model: nn.Module) -> dict:
    """Return the part of the state dict that belongs to the classifier, or to each of several."""
    names = model.pretrained_cfg["classifier"]
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names or ()))
    return {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
