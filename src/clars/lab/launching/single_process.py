"""A launch of one process, without `accelerate launch`: that would load torch for nothing but to start the process."""

import os
from collections.abc import Mapping

_PLAIN = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_machines": 1, "num_processes": 1}
PRECISIONS = ("no", "bf16", "fp16")


def environment(settings: Mapping[str, object]) -> dict[str, str] | None:
    """Return the environment variables that `accelerate launch` would set for the process of a configuration.

    None for a configuration that asks for anything but one process, on processor or GPU, in some precision: what else
    there may be is for accelerate to know.
    """
    others = {key: value for key, value in settings.items() if key not in _PLAIN}
    on_cpu, precision = others.pop("use_cpu", False), others.pop("mixed_precision", "no")
    if others or type(on_cpu) is not bool or precision not in PRECISIONS:
        return None
    if any(settings.get(key) != value for key, value in _PLAIN.items()):
        return None
    intel = {"KMP_AFFINITY": "granularity=fine,compact,1,0", "KMP_BLOCKTIME": "1"}
    return {
        "ACCELERATE_USE_CPU": str(on_cpu),
        "ACCELERATE_MIXED_PRECISION": precision,
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or "1",
        **(intel if on_cpu else {}),
    }
