"""The per-example norms by definition: slow, plain, and independent of the tracker."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clars.layers import Layer, LayerUnit, layers
from clars.norms.owners.tensors import tensors_in
from clars.norms.watch.forward import paused


def example_norms(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    *batch: Any,
    by: LayerUnit = "module",
    group: int = 1,
    reduction: Literal["mean", "sum"] = "mean",
) -> dict[str, Tensor]:
    """Return S_k per layer by one backward pass for each example, or group of them, by itself.

    c_{i,k} is the gradient in layer k of the loss of example i alone, over B where the loss is a mean. S_k =
    sum_i ||c_{i,k}||_2, a scalar tensor in the unit of the gradient. Asks for the gradient alone, so any use of a
    parameter is right: in several calls, within an expression, in several modules. Only for models without
    cross-example layers (no BatchNorm in training mode).

    Args:
        model: any such model; left as it was, buffers included.
        loss_fn: called as `loss_fn(model, *batch)`, returns a scalar.
        batch: what `loss_fn` is called with. B is the length of dimension 0 of the first tensor with dimensions. Every
            tensor of that length, those in tuples, lists, mappings and dataclasses included, is cut into examples; all
            else is passed on as it is.
        by: the unit of a layer, as in `clars.layers`.
        group: how many consecutive examples are taken together.
        reduction: what the loss does over the examples.

    Raises:
        ValueError: an unknown reduction; no tensor with dimensions in the batch.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction={reduction!r} is not known: use 'mean' or 'sum'.")
    size = _batch_size(batch)
    if size is None:
        raise ValueError("The batch holds no tensor with dimensions: there are no examples to take one by one.")
    found = layers(model, by)
    parameters = [parameter for layer in found for parameter in layer.parameters.values()]
    sums = {layer.name: parameters[0].new_zeros(()) for layer in found}
    with paused(model), _kept_buffers(model):
        for first in range(0, size, group):
            rows = slice(first, min(first + group, size))
            loss = loss_fn(model, *(_cut(value, size, rows) for value in batch))
            share = (rows.stop - rows.start) / size if reduction == "mean" else 1.0
            each = iter(torch.autograd.grad(loss * share, parameters, allow_unused=True))
            for layer in found:
                sums[layer.name] += _norm([next(each) for _ in layer.parameters], loss)
    return sums


def mask_norms(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    *batch: Any,
    by: LayerUnit = "module",
    group: int = 1,
    partial: bool = False,
) -> dict[str, Tensor]:
    """Return S_k per layer by masking the layer's output gradient to one example, or one group of them, at a time.

    For layer k and example i: c_{i,k} = vector-Jacobian product of layer k alone with its output gradient, all rows
    but those of example i set to zero; summed over all calls that use the layer's parameters in one forward. S_k =
    sum_i ||c_{i,k}||_2, a scalar tensor in the unit of the gradient. One vector-Jacobian product per call and example.

    Of a module's output with n * B rows in dimension 0 (windows, patches, frames), n consecutive rows are taken to be
    of one example. No shape tells that they are.

    Args:
        model: any model; left as it was, but for buffers that its forward updates.
        loss_fn: called as `loss_fn(model, *batch)`, returns a scalar.
        batch: passed on to `loss_fn`. B is the length of dimension 0 of its first tensor with dimensions; without one,
            every row is an example.
        by: the unit of a layer, as in `clars.layers`.
        group: how many consecutive examples are taken together.
        partial: whether to leave out layers of which this cannot tell S_k, in place of the error.

    Raises:
        ValueError: a layer's module returns no single tensor, or one whose rows are not a multiple of B, or is called
            without a tensor; a layer is used elsewhere than in the forward of its module; a loose parameter's module
            holds batch statistics, so that masking the module's output is not masking the layer.
    """
    with paused(model):
        return _mask_norms(model, layers(model, by), group, partial, loss_fn, *batch)


class _Use(NamedTuple):
    """One call of a module, with parameters of its own in place of the model's, by the `id` of these."""

    module: nn.Module
    output: Tensor
    parameters: dict[int, nn.Parameter]
    problem: str | None  # why its output cannot be masked

    def contribution(self, layer: Layer, mask: Tensor) -> list[Tensor | None]:
        """Return the vector-Jacobian products with the layer's parameters, None for those that the call lacks."""
        own = [self.parameters.get(id(parameter)) for parameter in layer.parameters.values()]
        present = [parameter for parameter in own if parameter is not None]
        parts = iter(torch.autograd.grad(self.output, present, mask, retain_graph=True, allow_unused=True))
        return [None if parameter is None else next(parts) for parameter in own]


def _mask_norms(
    model: nn.Module, found: list[Layer], group: int, partial: bool, loss_fn: Callable[..., Tensor], *batch
) -> dict[str, Tensor]:
    size = _batch_size(batch)
    with _separate_uses(model, found, size) as uses:
        loss = loss_fn(model, *batch)
    reached = [use for use in uses if use.output.requires_grad]
    outside = [parameter for layer in found for parameter in layer.parameters.values()]
    wanted = [use.output for use in reached] + outside
    gradients = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
    of_uses = [(use, gradient) for use, gradient in zip(reached, gradients) if gradient is not None]
    elsewhere = {id(each) for each, gradient in zip(outside, gradients[len(reached) :]) if gradient is not None}
    sums = {}
    for layer in found:
        own = {id(parameter) for parameter in layer.parameters.values()}
        calls = [(use, gradient) for use, gradient in of_uses if not own.isdisjoint(use.parameters)]
        problem = "is used elsewhere than in its module's forward" if own & elsewhere else None
        problem = problem or next((use.problem for use, _ in calls if use.problem), None)
        if problem is None:
            sums[layer.name] = _sum_of_norms(layer, calls, size, group, loss)
        elif not partial:
            raise ValueError(f"Layer {layer.name!r} {problem}; no mask of an output is exact.")
    return sums


def _sum_of_norms(layer: Layer, calls: list[tuple[_Use, Tensor]], size: int | None, group: int, loss: Tensor) -> Tensor:
    total = loss.new_zeros(())
    size = size or max((len(gradient) for _, gradient in calls), default=0)
    for first in range(0, size, group):
        parts: list[Tensor | None] = [None] * len(layer.parameters)
        for use, gradient in calls:
            each = len(gradient) // size
            mask = torch.zeros_like(gradient)
            rows = slice(first * each, (first + group) * each)
            mask[rows] = gradient[rows]
            parts = [_added(part, more) for part, more in zip(parts, use.contribution(layer, mask))]
        total += _norm(parts, loss)
    return total


@contextmanager
def _separate_uses(model: nn.Module, found: list[Layer], size: int | None) -> Iterator[list[_Use]]:
    """Have every call of a module use parameters of its own, and yield where the calls are listed.

    So a product with those of one call does not pass through an earlier one, whose output the later one was given;
    and the gradient of the model's own parameters is that of uses which no module's forward holds.
    """
    wanted = {id(parameter) for layer in found for parameter in layer.parameters.values()}
    uses: list[_Use] = []
    replaced: list[tuple[nn.Module, dict[str, nn.Parameter]]] = []

    def before(module: nn.Module, args: tuple) -> None:
        own = {name: parameter for name, parameter in module._parameters.items() if id(parameter) in wanted}
        replaced.append((module, own))
        module._parameters |= {name: nn.Parameter(parameter.detach()) for name, parameter in own.items()}

    def restore() -> dict[int, nn.Parameter]:
        module, own = replaced.pop()
        used = {id(parameter): module._parameters[name] for name, parameter in own.items()}
        module._parameters |= own
        return used

    def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        used = restore()
        problem = _problem(module, (*args, *kwargs.values()), output, size)
        outputs = list(tensors_in([output]))
        uses.extend(_Use(module, each, used, problem) for each in outputs if used)
        return output.clone() if isinstance(output, Tensor) else output  # an in-place operation leaves ours alone

    modules = [module for module in model.modules() if wanted & {id(each) for each in module._parameters.values()}]
    handles = [module.register_forward_pre_hook(before, prepend=True) for module in modules]
    handles += [module.register_forward_hook(after, with_kwargs=True) for module in modules]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()
        while replaced:  # by calls that an error ended
            restore()


def _problem(module: nn.Module, inputs: tuple, output: Any, size: int | None) -> str | None:
    kind = type(module).__name__
    inner = [each for each in module.modules() if each is not module]
    if not isinstance(output, Tensor):
        return f"belongs to a {kind} that returns {type(output).__name__}, not a tensor"
    if not any(True for _ in tensors_in(inputs)):
        return f"belongs to a {kind} that is called without a tensor"
    if output.dim() == 0 or (size and len(output) % size):
        shape = list(output.shape)
        return f"belongs to a {kind} whose output {shape} has not n rows for each of the {size} examples"
    if any(isinstance(each, _BatchNorm) and each.training for each in inner):
        return f"belongs to a {kind} that holds batch statistics"
    return None


def _added(part: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if part is None else part if more is None else part + more


def _norm(parts: list[Tensor | None], like: Tensor) -> Tensor:
    """Return the joint norm, zero where there is none."""
    present = [part.flatten() for part in parts if part is not None]
    return torch.cat(present).norm() if present else like.new_zeros(())


def _batch_size(batch: tuple) -> int | None:
    return next((tensor.shape[0] for tensor in tensors_in(batch) if tensor.dim()), None)


def _cut(value: Any, size: int, rows: slice) -> Any:
    """Return `value` with those rows alone of the tensors in it that have `size` of them."""
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and value.shape[0] == size else value
    if isinstance(value, (tuple, list)):
        parts = [_cut(each, size, rows) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, Mapping):
        part = copy.copy(value)
        for key, each in value.items():
            part[key] = _cut(each, size, rows)
        return part
    if is_dataclass(value) and not isinstance(value, type):
        part = copy.copy(value)
        for field in fields(value):  # of frozen ones as well
            object.__setattr__(part, field.name, _cut(getattr(value, field.name), size, rows))
        return part
    return value


@contextmanager
def _kept_buffers(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


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
