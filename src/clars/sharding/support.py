"""What of DeepSpeed and DistributedDataParallel is understood, and what is refused by name."""

import warnings
from importlib.metadata import version
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from clars.errors import UserError

KNOWN = ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3", "BF16_Optimizer")
OLDEST, NEWEST = (0, 19, 8), (0, 19, 8)  # that were tested


def check(zero: Any) -> None:
    """Refuse what is not understood of DeepSpeed's optimizer `zero`.

    Raises:
        UserError: naming what was found, and what to use instead.

    Warns:
        UserWarning: a version of DeepSpeed newer than those tested.
    """
    name = type(zero).__name__
    if name not in KNOWN:
        _refuse(f"its {name}", "ZeRO stage 1, 2 or 3")
    _check_version()
    if getattr(zero, "has_moe_layers", False):
        _refuse("mixtures of experts (MoE)", "a dense model")
    if getattr(zero, "sequence_parallel_size", 1) > 1:
        _refuse("sequence parallelism", "data parallelism alone")
    if getattr(zero, "mpu", None) is not None:
        _refuse("model parallelism (mpu)", "data parallelism alone")
    if getattr(zero, "torch_autocast_gradscaler", None) is not None:
        _refuse("torch_autocast in float16", "the fp16 section, or bfloat16")
    if getattr(zero, "zenflow", False):
        _refuse("ZenFlow", "ZeRO without it")
    if getattr(zero, "swap_optimizer", False):
        _refuse("optimizer states on NVMe", 'offload_optimizer: {"device": "cpu"}')
    if hasattr(zero, "backup_optimizer"):
        _refuse("offloading a part of the optimizer (ratio)", '"ratio": 1.0')
    if getattr(zero, "low_precision_master_weights_and_grads", False):
        _refuse("master weights of low precision", "master weights in float32")


def _check_version() -> None:
    found = tuple(int(part) for part in version("deepspeed").split("+")[0].split(".")[:3])
    if found < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        _refuse(f"version {version('deepspeed')}", f"{oldest} or newer: pip install 'deepspeed>={oldest}'")
    if found > NEWEST:
        newest = ".".join(map(str, NEWEST))
        warnings.warn(
            f"DeepSpeed {version('deepspeed')} is newer than {newest}, the newest tested. Every element's place is "
            "checked at the first step.",
            stacklevel=4,
        )


def _refuse(found: str, remedy: str) -> None:
    raise UserError(f"DeepSpeed's {found} is not supported by layer-wise optimizers: use {remedy}.".replace("its ", ""))


def refuse_uneven() -> None:
    """Refuse torch's `Join`, while DistributedDataParallel computes within it.

    A process whose batches have run out takes no step, and the others would wait for its norms.

    Raises:
        UserError: naming what to use instead.
    """
    replicas = DistributedDataParallel._get_active_ddp_module()
    if replicas is not None and replicas._join_config.enable:
        raise UserError(
            "torch's Join (uneven numbers of batches) is not supported: a process whose batches have run out takes no "
            "step, and the others would wait for its norms. Give every process as many batches: a "
            "DistributedSampler, or accelerate's even_batches=True."
        )
