"""Where the elements of a model's parameters are: which process updates which of them, and in what tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from clars.sharding.gradients import Holder


class Shard(NamedTuple):
    """Elements of one parameter that this process updates.

    `parameter` is the model's; `owner` is the tensor of the optimizer's parameter groups whose gradient and state
    hold the elements, at `cut` (all of it where that is None). `index` says which elements they are of the whole
    parameter: a slice of it flattened, or a slice per dimension.
    """

    name: str
    parameter: nn.Parameter
    owner: Tensor
    cut: slice | None
    index: slice | tuple[slice, ...]

    def view(self, tensor: Tensor) -> Tensor:
        """Return the elements' places in `tensor`, which is the owner or is laid out as the owner is."""
        tensor = local(tensor)
        return tensor if self.cut is None else tensor[self.cut]

    def part_of(self, whole: Tensor) -> Tensor:
        """Return the elements' places in `whole`, which is shaped as the whole parameter is."""
        return whole.flatten()[self.index] if isinstance(self.index, slice) else whole[self.index]


@dataclass
class Layout:
    """The shards of this process. This class: every process holds every parameter whole, and the same.

    Attributes:
        shards: one of each parameter at least, perhaps empty, where the optimizer steps the parameter itself.
        parameters: the model's, by name; the shards of all processes make up these.
        group: the processes over which gradients are averaged; None for all.
        replicas: of sharded parameters, how many processes hold the same elements.
        device: where the processes communicate.
        contributes: False where another process holds the same elements and speaks for all of them.
    """

    shards: list[Shard]
    parameters: dict[str, nn.Parameter]
    group: "distributed.ProcessGroup | None" = None
    replicas: int = 1
    device: torch.device | None = None
    contributes: bool = True
    _sent: tuple[tuple, Tensor] | None = field(default=None, init=False, repr=False)

    strategy = "replicated"
    sharded = False
    holders: Mapping[str, Holder] | None = None  # where gradients add up, by parameter; None where in its `.grad`
    steps_in_parts = False  # whether the strategy calls the optimizer's step with a part of the gradients at a time

    @property
    def world(self) -> int:
        """The number of processes over which gradients are averaged."""
        return processes(self.group)

    @property
    def copies(self) -> int:
        """How many processes hold the same elements."""
        return self.replicas if self.sharded else self.world

    def check(self) -> None:
        """Refuse what has come to be averaged otherwise than the layout says."""

    def reached_by(self, shards: Sequence[Shard]) -> set[str]:
        """Return which parameters got a gradient in this process, of those whose gradients are about to be measured."""
        return {shard.name for shard in shards}

    def active(self) -> set[str]:
        """Return which parameters got a gradient in the step under way, in any process."""
        return {name for name, parameter in self.parameters.items() if parameter.grad is not None}

    def gradient(self, shard: Shard) -> Tensor:
        """Return the gradient of the shard's elements, as the step uses it."""
        return shard.view(shard.owner.grad)

    def has_gradient(self, shard: Shard) -> bool:
        """Tell whether `gradient` has something to return."""
        return shard.owner.grad is not None

    def complete(self) -> bool:
        """Tell whether the gradients of all backward passes so far are where `gradient` finds them."""
        return True

    def loss_scale(self) -> float:
        """Return by what the loss was multiplied, as far as the strategy tells."""
        return 1.0

    def found(self, shard: Shard) -> Tensor | int:
        """Return how many elements the shard holds of what the model's parameter has."""
        return shard.view(shard.owner).numel()

    def whole(self, squares: Tensor, totals: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Make the layers' sums those of whole layers and of the global batch, by one all-reduce at most.

        The processes' gradients are averaged, so a contribution counts 1 / world size of what its own process saw:
        sums of norms are averaged, sums of squared norms divided twice, examples and groups counted together.

        Args:
            squares: [K, n], sums of squares of what is held here, such as weights and gradients.
            totals: [K, 4], sum of norms, sum of squared norms, number of this process's examples, and sum of the
                squared sizes of the groups that they were measured in.
        """
        world = self.world
        if world == 1:
            return squares, totals
        parts = [part for part in (squares / self.replicas if self.sharded else None, totals) if part is not None]
        if not parts:
            return squares, totals
        table = self.exchange(torch.cat(parts, 1))
        if self.sharded:
            squares = table[:, : squares.shape[1]]
        if totals is not None:
            totals = table[:, -4:] / self._divisors(table)
        return squares, totals

    def _divisors(self, like: Tensor) -> Tensor:
        """Return what the totals' sums over the processes are divided by; sent once, as that waits for the device."""
        key = (self.world, like.dtype, like.device)
        if self._sent is None or self._sent[0] != key:
            self._sent = key, like.new_tensor([self.world, self.world**2, 1.0, 1.0])
        return self._sent[1]

    def joint(self, sums: Tensor) -> Tensor:
        """Make sums [K] over the elements held here those over whole layers, by one all-reduce at most."""
        return self.sum(sums / self.replicas) if self.sharded and self.world > 1 else sums

    def exchange(self, table: Tensor) -> Tensor:
        """Sum over the processes what the layers' sums are made of."""
        return self.sum(table)

    def sum(self, table: Tensor) -> Tensor:
        """Sum `table` over the processes."""
        there = table.to(self.device)
        distributed.all_reduce(there, group=self.group)
        return there.to(table.device)


def local(tensor: Tensor) -> Tensor:
    """Return the elements of a distributed tensor that are here; an ordinary tensor is returned as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter that may be cut, by ZeRO-3 or `fully_shard`."""
    return getattr(parameter, "ds_shape", parameter.shape)


def processes(group: "distributed.ProcessGroup | None" = None) -> int:
    """Return the number of processes of a group, or of all; 1 where nothing is distributed."""
    return distributed.get_world_size(group) if distributed.is_available() and distributed.is_initialized() else 1


def replicated(named: Sequence[tuple[str, nn.Parameter]], group: "distributed.ProcessGroup | None" = None) -> Layout:
    """Return the layout in which each process holds all parameters."""
    shards = [Shard(name, p, p, None, (slice(None),) * p.dim()) for name, p in named]
    main = processes(group) == 1 or distributed.get_rank(group) == 0
    return Layout(shards, dict(named), group, device=shards[0].parameter.device, contributes=main)
