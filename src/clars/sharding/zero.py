"""Parameters cut by DeepSpeed ZeRO: flat partitions, in which a parameter is a run of elements or absent.

ZeRO gives the optimizer flat tensors in place of the parameters, and calls its `step()` once per group or sub-group,
each time with that one's gradient only. What is needed of all layers is therefore measured when ZeRO's own step begins:
its reduced gradients are all there then, in the scale of the loss and not yet clipped.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from clars.errors import UserError
from clars.sharding.layout import Layout, Shard
from clars.sharding.zero_gradients import moved_gradients


class ZeroLayout(Layout):
    """The shards of a ZeRO optimizer.

    Args:
        zero: DeepSpeed's optimizer around the one that steps.
        named: the model's parameters that it updates.
    """

    sharded = True
    steps_in_parts = True

    def __init__(self, zero: Any, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        named = list(named)
        _give_back_linear()
        self.zero = zero
        self.owners = _owners(zero)
        self.number = {id(owner): number for number, owner in enumerate(self.owners)}
        shards = list(_shards(zero, self.owners, {id(p): name for name, p in named}))
        super().__init__(shards, dict(named), _group(zero), device=_device())
        self.holders = moved_gradients(zero, self.parameters)
        self.strategy = f"zero{stage(zero)}"
        self.reached: set[str] = set()  # parameters that got a gradient since the last step, in this process
        self.stepped: set[str] = set()  # and in any, as of the step under way
        self.under_way = False
        self.scale_verified = False
        self.places: dict[tuple[int, int], tuple[int, int]] = {}  # of shards among the reduced gradients

    def reached_by(self, shards: Sequence[Shard]) -> set[str]:
        # for the others ZeRO puts zeros, or what was there before, in the gradient's place
        return self.reached

    def active(self) -> set[str]:
        return self.stepped

    def gradient(self, shard: Shard) -> Tensor:
        """Return the shard's gradient: as the step uses it where ZeRO has handed it over, else as it was reduced."""
        if shard.owner.grad is not None:
            return shard.view(shard.owner.grad)
        tensors = _reduced(self.zero, self.number[id(shard.owner)])
        place = (id(shard.owner), shard.cut.start)
        if place not in self.places:
            self.places[place] = _place(tensors, shard)
        which, begin = self.places[place]
        return tensors[which].view(-1)[begin : begin + shard.cut.stop - shard.cut.start]

    def has_gradient(self, shard: Shard) -> bool:
        return True

    def complete(self) -> bool:
        boundary = getattr(self.zero, "is_gradient_accumulation_boundary", None)
        return bool(boundary()) if callable(boundary) else True

    def loss_scale(self) -> float:
        return float(getattr(self.zero, "loss_scale", 1.0))

    def found(self, shard: Shard) -> Tensor:
        """Return how many of the elements are equal to the model's own, of which ZeRO keeps a copy."""
        master, model = shard.view(shard.owner.detach()), _model_values(shard)
        return (master.to(model.device, model.dtype) == model).sum()

    def whole(self, squares: Tensor, totals: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.stepped = set(self.reached)
        return super().whole(squares, totals)

    def exchange(self, table: Tensor) -> Tensor:
        """Sum `table` over the processes, and beside it, for each parameter, whether it got a gradient."""
        got = [float(name in self.reached) for name in self.parameters]
        summed = self.sum(torch.cat([table.flatten(), table.new_tensor(got)]))
        if not all(got):  # else there is nothing to learn, for which one would have to wait for the device
            counts = summed[table.numel() :].tolist()
            self.stepped = {name for name, count in zip(self.parameters, counts) if count}
        return summed[: table.numel()].view(table.shape)

    def install(self, optimizer: Any) -> None:
        """Have `optimizer` measure when ZeRO's step begins, and forget when it ends, be the step taken or skipped."""
        zero_step = self.zero.step
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.reached.add(name))

        def step(*args, **kwargs):
            try:
                self._begin(optimizer)
                return zero_step(*args, **kwargs)
            finally:
                self._end(optimizer)

        self.zero.step = step

    @torch.no_grad()
    def _begin(self, optimizer: Any) -> None:
        self.taken = False
        self.norm = optimizer.measure(self.shards)  # of all layers' gradients together
        self.scale = (
            self.loss_scale()
        )  # ZeRO may change it in the midst of its step, between overflow check and gradients
        optimizer.rate(1.0 / self.scale, self._unscaling(self.scale))  # of no account where a gradient has overflowed
        unknown = not self.scale_verified
        self.reduced = [self.gradient(shard).float().norm() for shard in self.shards] if unknown else None
        self.under_way = True
        for number, owner in enumerate(self.owners):  # DeepSpeed looks for state once, after its first call of step()
            for name in optimizer.kept(optimizer.param_groups[_group_number(self.zero, number)]):
                optimizer.buffer(owner, name)

    def _end(self, optimizer: Any) -> None:
        self.under_way = False
        if self.taken:
            optimizer.count()
        else:  # ZeRO has found that a gradient overflowed
            optimizer.skip()
        self.scale_verified |= self.taken
        optimizer.forget()
        self.reached.clear()
        # What is left of these gradients ZeRO would count again, or add to, where a parameter gets none the next time.
        left = [owner.grad for owner in self.owners if owner.grad is not None]
        if stage(self.zero) == 3:
            left.append(self.zero.grad_partitions_flat_buffer)
        for gradient in left:
            gradient.zero_()

    def hand_over(self, optimizer: Any) -> None:
        """Take the step for the flat tensors that ZeRO has put into the optimizer's groups.

        Raises:
            UserError: it was not ZeRO's step that called; or, at the first that was taken, ZeRO has scaled the
                gradients in an unknown way.
        """
        if not self.under_way:
            raise UserError("The optimizer's own step() was called under DeepSpeed: call engine.step() instead.")
        wanted, present = self._unscaling(self.scale), self._unscaling(self.loss_scale())
        self.taken = True
        owners = {id(owner) for group in optimizer.param_groups for owner in group["params"]}
        if self.reduced is not None:
            self._verify_scale(owners, present)
        shards = [shard for shard in self.shards if id(shard.owner) in owners and shard.name in self.stepped]
        if self.scale != self.loss_scale():  # ZeRO has divided by the scale of the step to come
            for shard in shards:
                self.gradient(shard).mul_(wanted / present)
        optimizer.apply(shards)

    def _verify_scale(self, owners: set[int], factor: Tensor) -> None:
        """Compare what ZeRO hands over at the first step that it takes with what it had reduced."""
        for shard, reduced in zip(self.shards, self.reduced):
            if id(shard.owner) in owners:
                found, expected = float(self.gradient(shard).norm()), float(reduced * factor)
                if not abs(found - expected) <= 1e-3 * abs(expected) + 1e-12:  # nor may it be undefined
                    raise UserError(
                        f"DeepSpeed hands over a gradient of norm {found:g} for a part of {shard.name!r}, where "
                        f"{expected:g} was expected: it scales or clips in a way that is not understood."
                    )

    def _unscaling(self, scale: float) -> Tensor:
        """Return ZeRO's factor from the reduced gradients to those that the step uses, under a loss scale."""
        limit = float(self.zero.clip_grad)
        clip = ((self.norm / scale + 1e-6) / limit).clamp(min=1.0) if limit else torch.ones_like(self.norm)
        return 1.0 / (scale * clip)


def is_zero(optimizer: Any) -> bool:
    """Tell whether `optimizer` is one of DeepSpeed's around the one that steps."""
    return type(optimizer).__module__.startswith("deepspeed.runtime.")


def stage(zero: Any) -> int:
    """Return the number of the ZeRO stage."""
    if hasattr(zero, "fp16_groups"):
        return 3
    return 2 if getattr(zero, "partition_gradients", False) else 1


def _give_back_linear() -> None:
    """Put torch's own linear function back, which ZeRO-3 replaces in the whole process by one that hides weights.

    Needed for per-example norms of linear layers; beside an optimizer of this package, `bind` has done so.
    """
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Replacing

    torch.nn.functional.linear = getattr(Replacing, "linear_bk", torch.nn.functional.linear)


def _device() -> torch.device:
    """Return where DeepSpeed's processes communicate; its tensors may be elsewhere."""
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def _owners(zero: Any) -> list[Tensor]:
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
        if hasattr(zero, name):
            return getattr(zero, name)
    raise AttributeError("flat partitions")


def _group(zero: Any) -> "distributed.ProcessGroup | None":
    group = zero.dp_process_group
    return None if distributed.get_world_size(group) == distributed.get_world_size() else group


def _shards(zero: Any, owners: list[Tensor], names: dict[int, str]) -> Iterable[Shard]:
    rank = distributed.get_rank(zero.dp_process_group)
    cut = _cut_one_by_one if stage(zero) == 3 else _cut_together
    for number, owner in enumerate(owners):
        for parameter, at, first, count in cut(zero, number, rank, owner.numel()):
            if count > 0:
                yield Shard(names[id(parameter)], parameter, owner, slice(at, at + count), slice(first, first + count))


def _cut_together(zero: Any, number: int, rank: int, size: int) -> Iterable[tuple[nn.Parameter, int, int, int]]:
    """Yield parameter, place in this partition, first element and number of elements, for ZeRO-1 and 2.

    The parameters lie in one flat tensor, of which each process has an equal part. Where they lie in it is read off
    the memory: ZeRO may reorder them and leave gaps.
    """
    groups, flats = _model_groups(zero)
    flat, low = flats[number], rank * size
    for parameter in groups[number]:
        place = (parameter.data_ptr() - flat.data_ptr()) // parameter.element_size()
        begin, end = max(place, low), min(place + parameter.numel(), low + size)
        yield parameter, begin - low, begin - place, end - begin


def _cut_one_by_one(zero: Any, number: int, rank: int, size: int) -> Iterable[tuple[nn.Parameter, int, int, int]]:
    """Yield the same for ZeRO-3, where each parameter is cut by itself and the last part of each may end in padding."""
    place = 0
    for parameter in zero.fp16_groups[number]:
        part = parameter.partition_numel()
        first = rank * part
        yield parameter, place, first, min(part, parameter.ds_numel - first)
        place += part


def _group_number(zero: Any, number: int) -> int:
    """Return the number of the optimizer's parameter group to which a partition belongs."""
    return zero.sub_group_to_group_id[number] if stage(zero) == 3 else number


def _model_groups(zero: Any) -> tuple[list, list]:
    if hasattr(zero, "bf16_groups"):
        return zero.bf16_groups, zero.bf16_groups_flat
    return zero.bit16_groups, zero.bit16_groups_flat


def _model_values(shard: Shard) -> Tensor:
    """Return the model's own values of the shard's elements."""
    if hasattr(shard.parameter, "ds_tensor"):
        return shard.parameter.ds_tensor.detach().view(-1)[: shard.index.stop - shard.index.start]
    return shard.part_of(shard.parameter.detach())


def _reduced(zero: Any, number: int) -> Sequence[Tensor]:
    """Return the reduced gradients of a partition, in its order, gaps included."""
    if hasattr(zero, "fp32_groups_gradient_flat_partition"):
        return [zero.fp32_groups_gradient_flat_partition[number]]
    return zero.averaged_gradients[number]


def _place(tensors: Sequence[Tensor], shard: Shard) -> tuple[int, int]:
    """Return in which of `tensors`, laid end to end, the shard lies, and where in it."""
    begin = 0
    for which, tensor in enumerate(tensors):
        if begin <= shard.cut.start and shard.cut.stop <= begin + tensor.numel():
            return which, shard.cut.start - begin
        begin += tensor.numel()
    raise UserError(
        f"DeepSpeed keeps the gradient of {shard.name!r}, of which {shard.cut.stop - shard.cut.start} elements were "
        f"expected, among {begin} elements in a way that is not understood."
    )
