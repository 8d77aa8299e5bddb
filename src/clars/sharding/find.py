"""Finds out where the elements of an optimizer's parameters are."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clars.errors import UserError
from clars.sharding.fsdp import fully_sharded, is_distributed
from clars.sharding.layout import Layout, replicated
from clars.sharding.support import check
from clars.sharding.zero import ZeroLayout, is_zero

T = TypeVar("T")
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")


def find(optimizer: Any, group: Any = None) -> Layout:
    """Return the layout of a layer-wise optimizer's parameters, as far as it can be told from model and optimizer.

    Args:
        optimizer: the layer-wise optimizer.
        group: the processes over which gradients of replicas are averaged; None for all.

    Raises:
        UserError: the parameters were replaced since the optimizer was made, or are sharded in a way not understood.
    """
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer in optimizer.layers:
        for local in layer.parameters:
            present = layer.module._parameters.get(local)
            if id(present) not in stepped:
                raise UserError(
                    f"Parameter {local!r} of layer {layer.name!r} was replaced or sharded after the optimizer was "
                    "made, so the step would train a tensor that the model does not use. Call clars.bind(optimizer, "
                    "model) after deepspeed.initialize (with the engine as model) or fully_shard, or make the "
                    "optimizer after the change to the model."
                )
            layer.parameters[local] = present
    _refuse_tied(optimizer)
    return plain_layout(optimizer.model, optimizer.named_parameters(), group)


def _refuse_tied(optimizer: Any) -> None:
    """Refuse a parameter that belongs to two layers by now: it would be stepped twice."""
    owners: dict[int, str] = {}
    for name, parameter in optimizer.named_parameters():
        first = owners.setdefault(id(parameter), name)
        if first != name:
            raise UserError(
                f"Parameters {first!r} and {name!r} are one tensor now, and were two when the optimizer was made; it "
                "would be stepped twice. Tie weights before the optimizer is made."
            )


def plain_layout(model: nn.Module, named: list[tuple[str, nn.Parameter]], group: Any = None) -> Layout:
    """Return the layout of parameters that the optimizer steps as they are: whole, or cut by `fully_shard`."""
    if any(is_distributed(parameter) for _, parameter in named):
        return fully_sharded(model, named)
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UserError(
            f"{type(model).__name__} is wrapped by FullyShardedDataParallel (FSDP version 1), whose flat parameters "
            "mix layers. Use fully_shard (with accelerate: fsdp_version: 2)."
        )
    return replicated(named, group)


def layout_of(optimizer: Any, model: nn.Module) -> Layout:
    """Return the layout of the parameters that any optimizer updates.

    Args:
        optimizer: torch's, or DeepSpeed's or Accelerate's around it; with DeepSpeed, the one it returned.
        model: the model, or a wrapper around it, such as DeepSpeed's engine.

    Raises:
        UserError: the parameters are sharded in a way not understood.
    """
    chain = list(unwrapped(optimizer))
    plain = plain_model(model)
    zero = next((one for one in chain if is_zero(one)), None)
    if zero is not None:
        check(zero)
        return ZeroLayout(zero, [(name, p) for name, p in canonical(plain.named_parameters()) if p.requires_grad])
    stepped = {id(parameter) for group in chain[-1].param_groups for parameter in group["params"]}
    return plain_layout(plain, [(name, p) for name, p in canonical(plain.named_parameters()) if id(p) in stepped])


def canonical(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Yield names without what wrappers within the model have put into them."""
    for name, value in named:
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, value


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model within the wrappers of DistributedDataParallel, DeepSpeed and torch.compile."""
    while True:
        if "_orig_mod" in (*vars(model), *model._modules):  # by torch.compile, or accelerate's compilation by regions
            model = model._orig_mod
        elif isinstance(model, (DistributedDataParallel, nn.DataParallel)) or is_engine(model):
            model = model.module
        else:
            return model


def is_engine(model: nn.Module) -> bool:
    """Tell whether `model` is an engine of DeepSpeed around one."""
    engines = [kind for kind in type(model).__mro__ if kind.__module__.startswith("deepspeed.")]
    return bool(engines) and hasattr(model, "module")


def unwrapped(optimizer: Any) -> Iterator[Any]:
    """Yield `optimizer`, the one that it wraps, and so on."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "optimizer", None)
