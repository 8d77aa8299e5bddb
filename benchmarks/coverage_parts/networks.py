"""The networks, and what becomes of one."""

import time
from collections.abc import Iterable

from . import check, timm_networks, torchvision_networks, transformers_networks

MAKERS = {
    "timm": timm_networks.make,
    "torchvision": torchvision_networks.make,
    "transformers": transformers_networks.make,
}


def tried(key: str) -> dict:
    """Return what became of a network, "timm/..." or the like."""
    began = time.process_time()
    kind, _, name = key.partition("/")
    try:
        network = MAKERS[kind](name)
    except Exception as error:
        return {"status": "does not build", "message": f"{type(error).__name__}: {error}"}
    try:
        found = check.check(network)
    except Exception as error:
        found = {"status": "fails", "message": f"not clars: {type(error).__name__}: {error}"}
    found |= {"left_out": network.left_out} if network.left_out else {}
    return found | {"shape": network.shape(), "seconds": round(time.process_time() - began, 1)}


def chosen(sets: Iterable[str], timm_parameters: dict[str, int | None]) -> list[str]:
    """Return the networks of the sets; `timm_parameters` is what is known of timm's, which is added to."""
    keys = []
    if "timm" in sets:
        families = timm_networks.families()
        keys += [f"timm/{name}" for name in timm_networks.smallest(families, timm_parameters)]
    if "torchvision" in sets:
        keys += [f"torchvision/{name}" for name in torchvision_networks.names()]
    if "transformers" in sets:
        keys += [f"transformers/{name}" for name in transformers_networks.names()]
    return keys
