"""The strategy of a launch: read from what `accelerate launch` says, brought into force, and checked to be in force.

accelerate leaves out a strategy in silence in several situations, most of them on processors. So nothing here is
believed: after `prepare`, the wrapper of the model and the layout of its parameters are looked at.
"""

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import distributed, nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from clars.errors import Fault, UserError
from clars.lab.launching.division import Division
from clars.optim.bind import bind
from clars.optim.layerwise import LayerwiseOptimizer

TIMEOUT = 600.0
REMEDY = "Use a configuration of configs/accelerate."
_SCALER = ("cur_scale", "cur_iter", "cur_hysteresis", "last_overflow_iter")  # of DeepSpeed's
_REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM splits tensors between processes, which is not supported.",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config splits tensors or sequences, which is not supported.",
}


def asked() -> str:
    """Return the strategy that the launch asks for: single, ddp, fsdp2, or zero of any stage.

    Raises:
        UserError: one that this version does not know, or that the launcher has switched off again.
    """
    for variable, reason in _REFUSED.items():
        if _is_true(variable):
            raise UserError(f"{reason} {REMEDY}")
    sharded = {"DeepSpeed": "ACCELERATE_USE_DEEPSPEED", "FSDP": "ACCELERATE_USE_FSDP"}
    wanted = next((name for name, variable in sharded.items() if _is_true(variable)), None)
    if wanted and (_is_true("ACCELERATE_USE_CPU") or "LOCAL_RANK" not in os.environ):
        raise UserError(
            f"{wanted} is asked for, and accelerate would leave it out: use_cpu is set, or the process was not started "
            f"by `accelerate launch`. {REMEDY} They run on processors without use_cpu."
        )
    if wanted == "DeepSpeed":
        return "zero"  # its stage stands in its own configuration
    if wanted == "FSDP":
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise UserError(f"fsdp_version: {version} flattens layers into one tensor. Use fsdp_version: 2.")
        return "fsdp2"
    return "ddp" if "LOCAL_RANK" in os.environ else "single"


def start(log_with: str | None = None, timeout: float = TIMEOUT, precision: str | None = None) -> Accelerator:
    """Make the `Accelerator` of this process.

    Args:
        log_with: a tracker that accelerate knows.
        timeout: seconds after which a process that waits for another gives up.
        precision: no, bf16 or fp16; None for what the launch says.

    Raises:
        UserError: the launch asks for what this machine or this version cannot do, or for another precision.
    """
    strategy, cpu = asked(), _on_cpu()
    precision = _precision(precision)
    _require_devices()
    try:
        # One microsecond more: accelerate drops a value that equals its default, for another backend than ours.
        handler = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout, microseconds=1))
        if cpu and strategy != "single":
            handler.backend = "gloo"
        if strategy == "fsdp2" and cpu:
            # accelerate shards on accelerators only, though torch shards anywhere: the name opens that way, and the
            # device stays what it is.
            PartialState(**handler.to_kwargs()).distributed_type = DistributedType.MULTI_GPU
        switched_off = cpu and strategy in ("single", "ddp")  # cpu=True switches a sharded strategy off in silence
        accelerator = Accelerator(
            mixed_precision=precision, cpu=switched_off, log_with=log_with, project_dir=".", kwargs_handlers=[handler]
        )
    except (ValueError, ImportError) as error:
        raise UserError(f"accelerate cannot start here: {error}") from error
    except distributed.DistError as error:
        raise Fault(f"The processes of the launch did not come together within {timeout:g} s: {error}") from None
    if accelerator.num_processes != _launched():
        raise UserError(
            f"{_launched()} processes were launched, and accelerate made {accelerator.num_processes} of them one run. "
            f"{REMEDY}"
        )
    if strategy == "zero":
        _check_deepspeed(accelerator.state.deepspeed_plugin.deepspeed_config)
    return accelerator


def prepare(
    accelerator: Accelerator, division: Division, model: nn.Module, optimizer: Optimizer, timeout: float = TIMEOUT
) -> tuple[nn.Module, Optimizer, str]:
    """Put model and optimizer under the strategy; return what to train with, and the name of what is in force.

    The names are single, ddp, fsdp2, zero1, zero2 and zero3. `timeout` is that of `start`.

    Raises:
        UserError: another strategy than the one that was asked for is in force, or another optimizer steps.
    """
    accelerator.gradient_accumulation_steps = division.accumulation
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_batch_size": division.global_batch,
            "train_micro_batch_size_per_gpu": division.micro_batch,
            "gradient_accumulation_steps": division.accumulation,
            "gradient_clipping": 0.0,  # accelerate would clip to 1
            "zero_force_ds_cpu_optimizer": False,  # accelerate would replace the optimizer by DeepSpeed's Adam
        }
        if isinstance(optimizer, LayerwiseOptimizer):
            optimizer.merge_groups()  # DeepSpeed takes its time for each
    try:
        prepared, stepping = accelerator.prepare(model, optimizer)
    except ValueError as error:  # such as a precision that the device does not have
        raise UserError(f"The strategy cannot be put into force here: {error}") from error
    _limit_waiting(timeout)
    found, wanted = _found(prepared), asked()
    if wanted == "zero":
        wanted = f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if found != wanted:
        raise UserError(f"The launch asks for {wanted}, and accelerate has put {found} into force. {REMEDY}")
    if isinstance(optimizer, LayerwiseOptimizer):
        bind(stepping, prepared)
    return prepared, stepping, found


def loss_scale(accelerator: Accelerator, optimizer: Optimizer) -> dict[str, float] | None:
    """Return the state of the scaler of float16's gradients, torch's or DeepSpeed's; None without one."""
    if accelerator.scaler is not None:
        return accelerator.scaler.state_dict()
    scaler = getattr(optimizer.optimizer, "loss_scaler", None)
    return {name: vars(scaler)[name] for name in _SCALER if name in vars(scaler)} if scaler else None


def put_loss_scale(accelerator: Accelerator, optimizer: Optimizer, state: dict[str, float] | None) -> None:
    """Give the scaler its state back, if it is of the same kind: other precisions have a fixed scale of their own."""
    present = loss_scale(accelerator, optimizer)
    if state and present and state.keys() == present.keys():
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state)
        else:
            vars(optimizer.optimizer.loss_scaler).update(state)


def skipped_a_step(accelerator: Accelerator, model: nn.Module) -> bool:
    """Tell whether DeepSpeed left out a step for a gradient that is not finite, where no loss scale accounts for it."""
    return getattr(model, "skipped_steps", 0) > 0 and accelerator.mixed_precision != "fp16"


def same_everywhere(accelerator: Accelerator, step: int, folder: Path) -> None:
    """Check that all processes would go on from the same step.

    Raises:
        UserError: they would not, as on machines that do not share a file system.
    """
    seen = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(seen)) > 1:
        raise UserError(
            f"{folder} is not the same for all processes, which would go on from the steps {sorted(set(seen))}. Put "
            "--out on a file system that all machines share."
        )


def _limit_waiting(timeout: float) -> None:
    """Set the timeout of all process groups: DeepSpeed makes its own, with a limit of half an hour."""
    set_timeout = getattr(distributed, "set_timeout", None) or c10d._set_pg_timeout  # public since torch 2.15
    for group in list(c10d._world.pg_map) if distributed.is_initialized() else ():
        set_timeout(timedelta(seconds=timeout), group)


def _found(model: nn.Module) -> str:
    if hasattr(model, "zero_optimization_stage"):  # DeepSpeed's engine, without importing DeepSpeed
        return f"zero{model.zero_optimization_stage()}"
    if isinstance(model, DistributedDataParallel):
        return "ddp"
    sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    if any(sharded):
        return "fsdp2" if all(sharded) else "fsdp2 for a part of the parameters"
    return "single"


def _check_deepspeed(config: dict) -> None:
    """Refuse what would change a run's numbers behind the recipe's back."""
    stage = config["zero_optimization"].get("stage")
    if stage not in (1, 2, 3):
        raise UserError(f"zero_optimization.stage = {stage!r}: use 1, 2 or 3; without ZeRO, ddp.yaml does the same.")
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise UserError(f"The DeepSpeed configuration has a section {section!r}. Remove it: the recipe decides.")
    if config.get("gradient_clipping", "auto") not in (0, "auto"):
        value = config["gradient_clipping"]
        raise UserError(
            f"gradient_clipping = {value!r} in the DeepSpeed configuration: recipes do not clip. Remove it."
        )


def _precision(given: str | None) -> str | None:
    """Return the precision to compute in; None leaves it to the launch.

    The files of configs/accelerate say no, which counts as saying nothing.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if given is not None and launched not in ("no", given):
        raise UserError(
            f"--mixed-precision {given}: `accelerate launch`, or its configuration, says mixed_precision {launched}. "
            "Leave one of them out."
        )
    if _on_cpu() and "fp16" in (given, launched):
        raise UserError(
            "Mixed precision fp16 needs a GPU, and this run is on the processor. Choose --mixed-precision bf16, or no."
        )
    return given


def _require_devices() -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not _on_cpu() and local > torch.cuda.device_count():
        raise UserError(
            f"{local} processes for {torch.cuda.device_count()} GPUs on this machine. Launch with --num_processes "
            f"{torch.cuda.device_count()}, or name more GPUs."
        )


def _on_cpu() -> bool:
    return not torch.cuda.is_available() or _is_true("ACCELERATE_USE_CPU")


def _launched() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
