"""Tells a layer-wise optimizer what a strategy has made of its parameters."""

from typing import Any

from torch import Tensor, distributed, nn

from clars.errors import UserError
from clars.optim.layerwise import LayerwiseOptimizer
from clars.optim.options import layers_of
from clars.sharding.find import find, unwrapped
from clars.sharding.state import put
from clars.sharding.support import check
from clars.sharding.zero import ZeroLayout, is_zero


def bind(optimizer: Any, model: nn.Module, group: "distributed.ProcessGroup | None" = None) -> LayerwiseOptimizer:
    """Tell `clars.CLARS`, `clars.LARS` or `clars.LAMB` where its layers' elements are; return it.

    Call it once, after `deepspeed.initialize`, `fully_shard` or `Accelerator.prepare` and before the first step, in
    all processes. DeepSpeed needs it. Elsewhere the first step finds out by itself; only an optimizer that was made
    before `fully_shard` has to be told. State that was loaded before is cut as the parameters were.

    Args:
        optimizer: the optimizer, or DeepSpeed's or Accelerate's around it.
        model: DeepSpeed's engine; otherwise the model, or a wrapper around it.
        group: the processes over which the gradients of replicas are averaged; by default those of the wrapper, and
            all of them where it does not tell.

    Raises:
        UserError: the optimizer was replaced by another; the parameters are sharded in a way that is not understood.
    """
    chain = list(unwrapped(getattr(model, "optimizer", None))) if type(model).__module__.startswith("deepspeed") else []
    inner = [one for one in unwrapped(optimizer) if isinstance(one, LayerwiseOptimizer)]
    if not inner or (chain and inner[0] not in chain):
        stepping = type((chain or list(unwrapped(optimizer)))[-1]).__name__
        raise UserError(
            f"{stepping} takes the steps, not an optimizer of clars. DeepSpeed replaces optimizers where it offloads "
            "them: set zero_force_ds_cpu_optimizer to false in its configuration."
        )
    own = inner[0]
    zero = next((one for one in [*chain, *unwrapped(optimizer)] if is_zero(one)), None)
    if zero is not None and isinstance(own.known_layout, ZeroLayout) and own.known_layout.zero is zero:
        return own  # bound before: a second time, each step would be measured twice
    state = _take_state(own, zero is not None)
    if zero is not None:
        check(zero)
        own.place(ZeroLayout(zero, own.named_parameters()))
        own.layout.install(own)
    else:
        _adopt(own)
        own.place(find(own, group or getattr(model, "process_group", None)))
    for name, whole in state.items():
        put(own.layout, own, whole, name)
    return own


def _take_state(optimizer: LayerwiseOptimizer, zero: bool) -> dict[str, dict[str, Tensor]]:
    """Take the buffers, by their and their parameter's name, of whole parameters that will be stepped no more."""
    taken: dict[str, dict[str, Tensor]] = {}
    for layer in optimizer.layers:
        for local, before in layer.parameters.items():
            if before in optimizer.state and (zero or layer.module._parameters[local] is not before):
                for name, buffer in optimizer.state.pop(before).items():
                    taken.setdefault(name, {})[layer.prefix + local] = buffer
    return taken


def _adopt(optimizer: LayerwiseOptimizer) -> None:
    """Have the optimizer step the tensors that are the model's parameters now."""
    present = {
        layer.name: [layer.module._parameters[local] for local in layer.parameters] for layer in optimizer.layers
    }
    for group in optimizer.param_groups:
        group["params"] = [parameter for name in layers_of(group) for parameter in present[name]]
