"""SHA-256 of what a run leaves: by it a record tells that it, or a file beside it, is not what the run wrote.

That is a guard against accident and careless editing. Whoever means to deceive can form the digests anew.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def of_value(value: object) -> str:
    """Return the SHA-256 of a JSON value in its canonical form.

    That form has the keys of objects in order, no spaces, ASCII with the other characters as escapes, and numbers as
    Python writes them: the shortest that read as the same number.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as `sha256sum` does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_tensors(tensors: "Mapping[str, Tensor]", texts: Mapping[str, str]) -> str:
    """Return the SHA-256 of tensors, by their names, types, shapes and bytes, and of texts by name."""
    import torch

    found = hashlib.sha256(json.dumps(dict(sorted(texts.items()))).encode("ascii"))
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode("ascii"))
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
