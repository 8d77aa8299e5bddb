"""Methods that are settings of another one, by name. Free of torch, so that recipes are read without it."""

from collections.abc import Mapping
from typing import Any

AUTHOR2019 = {
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "trust_coefficient": 0.01,
    "nesterov": False,
    "layers": "parameter",
    "overrides": {"@1d": {"adapt": False}},
    "estimator": "group",
    "group": 8,
    "eps": 1e-6,
    "norm_floor": 0.0,
    "max_ratio": 0.1,
    "decay_in_ratio": False,
    "rate_in_buffer": False,
}
"""CLARS's arguments for the step of its first author's code; see `clars.CLARS.author2019`."""


def author2019(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return these arguments with what was given in their place. Overrides by layer come on top of its own."""
    own = dict(AUTHOR2019)
    if given.get("norms") is not None:
        del own["estimator"], own["group"]
    elif given.get("estimator", "group") != "group":
        del own["group"]
    if isinstance(given.get("overrides"), Mapping):
        given = {**given, "overrides": {**AUTHOR2019["overrides"], **given["overrides"]}}
    return {**own, **given}
