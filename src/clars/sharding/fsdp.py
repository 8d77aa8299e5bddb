"""Parameters cut by torch's `fully_shard`, in one dimension of the mesh (FSDP2) or with replicas of it (HSDP)."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from clars.errors import UserError
from clars.sharding.layout import Layout, Shard, local, processes


class FullyShardedLayout(Layout):
    """Every parameter is a distributed tensor, cut along one of its dimensions."""

    strategy = "fsdp2"
    sharded = True

    def __init__(self, groups: Sequence[Any], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.groups = groups

    def check(self) -> None:
        """Refuse gradients that are not averaged.

        Raises:
            UserError: a divisor of the gradients was set.
        """
        if any(getattr(group, "gradient_divide_factor", None) is not None for group in self.groups):
            raise UserError(
                "set_gradient_divide_factor was called, so gradients are not averaged over the processes as the "
                "per-example norms are. Leave the factor as it is, and scale the loss."
            )

    def complete(self) -> bool:
        return not any(CutGradient(param, group).elsewhere() for group in self.groups for param in group.fsdp_params)


class CutGradient:
    """Where the gradient of a parameter adds up that `fully_shard` has cut, of which `param` and `group` are torch's.

    It is in the part that this process keeps; and, of backward passes after which the processes did not average, in the
    whole parameter, which is out of the user's reach.
    """

    cut = True

    def __init__(self, param: Any, group: Any) -> None:
        self._param, self._group = param, group

    def grads(self) -> list[Tensor]:
        grad = self._param.sharded_param.grad
        return [] if grad is None else [local(grad)]

    def elsewhere(self) -> bool:
        whole = getattr(self._param, "_unsharded_param", None)
        return (
            (whole is not None and whole.grad is not None)
            or self._param.unsharded_accumulated_grad is not None
            or getattr(self._group, "_partial_reduce_output", None) is not None
        )


def cut_gradients(model: nn.Module) -> dict[tuple[nn.Module, str], CutGradient]:
    """Return where gradients add up, by module and name of the parameter; nothing where `fully_shard` has cut none."""
    return {
        (param._module_info.module, param._module_info.param_name): CutGradient(param, group)
        for group in _groups(model)
        for param in group.fsdp_params
    }


def fully_sharded(model: nn.Module, named: Iterable[tuple[str, nn.Parameter]]) -> FullyShardedLayout:
    """Return the layout of the parameters of a model to which `fully_shard` was applied.

    Raises:
        UserError: a parameter is not cut by `fully_shard`, is cut by something else too, such as tensor parallelism,
            or the gradients are not averaged over all processes.
    """
    named = list(named)
    groups = _groups(model)
    if not groups:
        raise UserError(
            "The model's parameters are distributed tensors, but fully_shard was not applied to it (tensor "
            "parallelism?), which is not supported. Use fully_shard alone."
        )
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
    layout = FullyShardedLayout(
        groups,
        shards,  # of every parameter, as torch's own optimizers have state of the empty parts too
        dict(named),
        None if whole else mesh.get_group(),
        replicas,
        named[0][1].device,
        mesh.ndim == 1 or mesh.get_local_rank(0) == 0,
    )
    layout.check()
    return layout


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


def _groups(model: nn.Module) -> list[Any]:
    """Return torch's groups of parameters that are gathered together."""
    return [
        group
        for module in model.modules()
        if hasattr(module, "_get_fsdp_state")
        for group in getattr(module._get_fsdp_state(), "_fsdp_param_groups", None)
        or filter(None, [getattr(module._get_fsdp_state(), "_fsdp_param_group", None)])
    ]
