"""Parameters cut by torch's `fully_shard`, in one dimension of the mesh (FSDP2) or with replicas of it (HSDP)."""

from collections.abc import Iterable

from torch import Tensor, nn

from clars.errors import UserError
from clars.sharding.layout import Layout, Shard, local, processes


class FullyShardedLayout(Layout):
    """Every parameter is a distributed tensor, cut along one of its dimensions."""

    strategy = "fsdp2"
    sharded = True


def fully_sharded(model: nn.Module, named: Iterable[tuple[str, nn.Parameter]]) -> FullyShardedLayout:
    """Return the layout of the parameters of a model to which `fully_shard` was applied.

    Raises:
        UserError: a parameter is not cut by `fully_shard`, is cut by something else too, such as tensor parallelism,
            or the gradients are not averaged over all processes.
    """
    named = list(named)
    _check_modules(model)
    shards = []
    for name, parameter in named:
        dimension = _sharded_dimension(name, parameter)
        index = [slice(None)] * parameter.dim()
        mesh = parameter.device_mesh
        start = mesh.get_local_rank(mesh.ndim - 1) * -(-parameter.shape[dimension] // mesh.size(mesh.ndim - 1))
        start = min(start, parameter.shape[dimension])
        index[dimension] = slice(start, start + local(parameter).shape[dimension])
        shards.append(Shard(name, parameter, parameter, None, tuple(index)))
    mesh = named[0][1].device_mesh
    replicas = mesh.size(0) if mesh.ndim == 2 else 1
    whole = mesh.size() == processes()
    return FullyShardedLayout(
        [shard for shard in shards if local(shard.parameter).numel()],
        dict(named),
        None if whole else mesh.get_group(),
        replicas,
        named[0][1].device,
        mesh.ndim == 1 or mesh.get_local_rank(0) == 0,
    )


def is_distributed(tensor: Tensor) -> bool:
    """Tell whether `tensor` is a distributed one (a DTensor)."""
    return hasattr(tensor, "device_mesh")


def _sharded_dimension(name: str, parameter: nn.Parameter) -> int:
    """Return the dimension along which the parameter is cut."""
    if not is_distributed(parameter):
        raise UserError(
            f"Parameter {name!r} is no part of what fully_shard cut (ignored_params?), so its gradient is not averaged "
            "over the processes. Leave it out of the optimizer, or let fully_shard have it."
        )
    mesh, placements = parameter.device_mesh, parameter.placements
    *outer, inner = placements
    if len(outer) > 1 or not all(placement.is_replicate() for placement in outer) or type(inner).__name__ != "Shard":
        raise UserError(
            f"Parameter {name!r} of {parameter.numel()} elements is laid out as {placements} on {mesh}; this process "
            f"holds {local(parameter).numel()} of them. Known are Shard (FSDP2) and Replicate, Shard (HSDP); tensor "
            "parallelism is not supported. Use fully_shard alone."
        )
    if mesh.ndim == 2 and mesh.size() != processes():
        raise UserError(
            f"Parameter {name!r} is on a mesh of {mesh.size()} of {processes()} processes with replicas. Use one mesh "
            "over all processes."
        )
    return inner.dim


def _check_modules(model: nn.Module) -> None:
    groups = [
        group
        for module in model.modules()
        if hasattr(module, "_get_fsdp_state")
        for group in getattr(module._get_fsdp_state(), "_fsdp_param_groups", None)
        or filter(None, [getattr(module._get_fsdp_state(), "_fsdp_param_group", None)])
    ]
    if not groups:
        raise UserError(
            "The model's parameters are distributed tensors, but fully_shard was not applied to it (tensor "
            "parallelism?), which is not supported. Use fully_shard alone."
        )
    if any(getattr(group, "gradient_divide_factor", None) is not None for group in groups):
        raise UserError(
            "set_gradient_divide_factor was called, so gradients are not averaged over the processes as the "
            "per-example norms are. Leave the factor as it is, and scale the loss."
        )
