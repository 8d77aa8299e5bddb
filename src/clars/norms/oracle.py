"""The per-example norms by definition: slow, plain, and independent of the tracker."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clars.layers import Layer, LayerUnit, layers
from clars.norms.watch.forward import paused


def mask_norms(
    model: nn.Module, loss_fn: Callable[..., Tensor], *batch: Tensor, by: LayerUnit = "module", group: int = 1
) -> dict[str, Tensor]:
    """Return S_k per layer by masking the layer's output gradient to one example, or one group of them, at a time.

    For layer k and example i: c_{i,k} = vector-Jacobian product of layer k alone with its output gradient, all rows
    but row i set to zero. S_k = sum_i ||c_{i,k}||_2, a scalar tensor in the unit of the gradient. One vector-Jacobian
    product per layer and example. Works for every model in which each layer is used once.

    Args:
        model: any model; left as it was, but for buffers that its forward updates.
        loss_fn: called as `loss_fn(model, *batch)`, returns a scalar.
        batch: passed on to `loss_fn`.
        by: the unit of a layer, as in `clars.layers`.
        group: how many consecutive examples are taken together.

    Raises:
        ValueError: a layer is used twice; a layer's module returns no single tensor; a loose parameter's module
            holds batch statistics, so that masking the module's output is not masking the layer.
    """
    with paused(model):
        return _mask_norms(model, layers(model, by), group, loss_fn, *batch)


def _mask_norms(
    model: nn.Module, found: list[Layer], group: int, loss_fn: Callable[..., Tensor], *batch
) -> dict[str, Tensor]:
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        if module in outputs:
            raise ValueError(f"{type(module).__name__} is used twice; the mask oracle needs one use per pass.")
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(module).__name__} returns {type(output).__name__}; the mask oracle needs a tensor."
            )
        outputs[module] = output
        return output.clone()  # a later in-place operation then leaves the layer's own output alone

    modules = {layer.module for layer in found}
    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        loss = loss_fn(model, *batch)
    finally:
        for handle in handles:
            handle.remove()
    used = [layer for layer in found if layer.module in outputs]
    gradients = torch.autograd.grad(loss, [outputs[layer.module] for layer in used], retain_graph=True)
    sums = {layer.name: loss.new_zeros(()) for layer in found}
    for layer, gradient in zip(used, gradients):
        sums[layer.name] = _sum_of_norms(layer, outputs[layer.module], gradient, group)
    return sums


def _sum_of_norms(layer: Layer, output: Tensor, gradient: Tensor, group: int) -> Tensor:
    inner = [module for module in layer.module.modules() if module is not layer.module]
    if any(isinstance(module, _BatchNorm) and module.training for module in inner):
        raise ValueError(
            f"{layer.name} belongs to a module that holds batch statistics; no mask of its output is exact."
        )
    total = gradient.new_zeros(())
    for first in range(0, len(gradient), group):
        mask = torch.zeros_like(gradient)
        mask[first : first + group] = 1
        parts = torch.autograd.grad(
            output, list(layer.parameters.values()), mask * gradient, retain_graph=True, allow_unused=True
        )
        total += torch.cat([part.flatten() for part in parts if part is not None]).norm()
    return total


def vmap_norms(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Return S_k per layer for a loss averaged over examples, by `torch.func.vmap` of the gradient of one example.

    Only for models without cross-example layers (no BatchNorm in training mode).

    Args:
        model: called as `model(x)`.
        loss_fn: called as `loss_fn(output, target)`, averages over dimension 0.
        x: inputs [B, ...].
        y: targets [B].
    """
    parameters = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    frozen = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}

    def loss(values: dict[str, Tensor], xi: Tensor, yi: Tensor) -> Tensor:
        output = torch.func.functional_call(model, values | frozen, (xi.unsqueeze(0),))
        return loss_fn(output, yi.unsqueeze(0))

    with paused(model):
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")
        gradients = each(parameters, x, y)
    names = {id(value): name for name, value in model.named_parameters()}
    return {
        layer.name: torch.cat([gradients[names[id(value)]].flatten(1) for value in layer.parameters.values()], 1)
        .norm(dim=1)
        .mean()
        for layer in layers(model)
    }
