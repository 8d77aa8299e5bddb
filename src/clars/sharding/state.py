"""Weights and momentum in whole tensors, from any strategy, and momentum back into any."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from clars.errors import UserError
from clars.sharding.find import canonical, layout_of, plain_model, unwrapped
from clars.sharding.fsdp import is_distributed
from clars.sharding.layout import Layout, Shard, processes, whole_shape

MOMENTUM = "momentum_buffer"


def gather_momentum(optimizer: Any, model: nn.Module, key: str | None = None) -> dict[str, Tensor]:
    """Return the momentum of whole parameters by their names: on the CPU of the main process, elsewhere nothing.

    To be called in all processes; works alike for one process, DDP, FSDP2 and ZeRO. Parameters that have none yet are
    left out.

    Args:
        optimizer: any that keeps "momentum_buffer", as CLARS, LARS and torch's SGD do, or what `key` says; or
            DeepSpeed's or Accelerate's around.
        model: the model, or a wrapper around it, such as DeepSpeed's engine.
        key: the name in the optimizer's state, for optimizers that keep other tensors of a parameter's shape. LAMB's
            are "exp_avg" and "exp_avg_sq", its `buffers`; its number of steps is "step" of its parameter groups.

    Raises:
        UserError: no key, and the optimizer keeps several.
    """
    layout, inner = _layout(optimizer, model), _inner(optimizer)
    key = key or _only_buffer(inner)
    held = [(shard, inner.state.get(shard.owner, {}).get(key)) for shard in layout.shards]
    return _gather(layout, [(shard, shard.view(buffer)) for shard, buffer in held if buffer is not None])


def gather_weights(optimizer: Any, model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict in whole tensors: on the CPU of the main process, elsewhere nothing.

    To be called in all processes, as `gather_momentum`. Trained parameters are those that the optimizer steps, in
    float32 where a strategy keeps such beside the model's own; buffers are the main process's.
    """
    layout = _layout(optimizer, model)
    weights = _gather(layout, [(shard, shard.view(shard.owner.detach())) for shard in layout.shards])
    plain = plain_model(model)
    for name, parameter in canonical(plain.named_parameters()):
        if name not in layout.parameters:
            weights[name] = _whole(parameter.detach() if not hasattr(parameter, "ds_tensor") else parameter)
    persistent = {name for name, _ in canonical(plain.state_dict().items())}
    weights |= {name: buffer for name, buffer in canonical(plain.named_buffers()) if name in persistent}
    return {name: value.detach().cpu() for name, value in weights.items()} if _is_main() else {}


def put_momentum(optimizer: Any, model: nn.Module, momentum: Mapping[str, Tensor], key: str | None = None) -> None:
    """Give the optimizer the momentum that `gather_momentum` returned, under any strategy and number of processes.

    To be called in all processes, with whole tensors in each: after `Accelerator.prepare`, `deepspeed.initialize` or
    `fully_shard`. Into an optimizer of ours it can also be put before; `clars.bind` then cuts it.

    Raises:
        UserError: a tensor's shape is not that of its parameter; no key, and the optimizer keeps several.
    """
    inner = _inner(optimizer)
    put(_layout(optimizer, model), inner, momentum, key or _only_buffer(inner))


def put(layout: Layout, optimizer: torch.optim.Optimizer, momentum: Mapping[str, Tensor], key: str) -> None:
    """Put whole momentum where `layout` says that the elements are."""
    for name, parameter in layout.parameters.items():
        if name in momentum and momentum[name].shape != whole_shape(parameter):
            raise UserError(
                f"The momentum of {name!r} has the shape {tuple(momentum[name].shape)}, the parameter "
                f"{tuple(whole_shape(parameter))}. The state is of another model."
            )
    for shard in layout.shards:
        if shard.name in momentum:
            state = optimizer.state[shard.owner]
            if state.get(key) is None:
                state[key] = torch.zeros_like(shard.owner, requires_grad=False)
            shard.view(state[key]).copy_(shard.part_of(momentum[shard.name]))


@torch.no_grad()
def _gather(layout: Layout, held: Sequence[tuple[Shard, Tensor]]) -> dict[str, Tensor]:
    """Put together the whole tensors, one at a time, of which each process has the elements in `held`."""
    by_name: dict[str, list[tuple[Shard, Tensor]]] = {}
    for shard, values in held:
        by_name.setdefault(shard.name, []).append((shard, values))
    there = torch.tensor([name in by_name for name in layout.parameters], dtype=torch.int)
    if layout.world > 1:
        there = layout.sum(there)
    whole = {}
    for (name, parameter), anywhere in zip(layout.parameters.items(), there.tolist()):
        if anywhere:
            dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            tensor = torch.zeros(whole_shape(parameter), dtype=dtype, device=layout.device)
            for shard, values in by_name.get(name, ()) if layout.contributes else ():
                shard.part_of(tensor).copy_(values)
            if layout.world > 1:
                distributed.reduce(tensor, 0, group=layout.group)
            if _is_main():
                whole[name] = tensor.cpu()
    return whole


def _layout(optimizer: Any, model: nn.Module) -> Layout:
    """Return where the elements are; an optimizer of ours knows once it is bound or has stepped."""
    return getattr(_inner(optimizer), "known_layout", None) or layout_of(optimizer, model)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    return list(unwrapped(optimizer))[-1]


def _only_buffer(optimizer: torch.optim.Optimizer) -> str:
    """Return the name of the one tensor that an optimizer keeps of a parameter."""
    names = getattr(optimizer, "buffers", (MOMENTUM,))
    if len(names) > 1:
        raise UserError(
            f"{type(optimizer).__name__} keeps {' and '.join(names)} of each parameter. Go through them by key=..., "
            f"one of {type(optimizer).__name__}.buffers."
        )
    return names[0]


def _whole(parameter: Tensor) -> Tensor:
    """Return a parameter that is not trained, whole; strategies may have cut it too."""
    if is_distributed(parameter):
        return parameter.full_tensor()
    if hasattr(parameter, "ds_tensor"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def _is_main() -> bool:
    return processes() == 1 or distributed.get_rank() == 0
