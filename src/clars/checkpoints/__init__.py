"""Published checkpoints: folders that timm reads as they are, each traceable to the run that made it."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the commands about checkpoints answer without torch
    from torch import nn


def load(name: str | Path) -> "nn.Module":
    """Return the network of a published checkpoint, in evaluation mode, on the CPU.

    Everything in the folder is checked first, and nothing in it is unpickled. The network carries timm's
    `pretrained_cfg`, from which `timm.data.resolve_model_data_config` tells how images are to be prepared.

    Args:
        name: a name that `clars checkpoints list` shows, pulled where it is not on this machine; or a folder.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be reached, or it is not what it says.
    """
    from clars.checkpoints import pull  # which takes long to import

    return pull.read(name).network()
