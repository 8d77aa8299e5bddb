"""Where DeepSpeed ZeRO adds gradients up from backward pass to backward pass, which differs from stage to stage.

Found by watching it: stage 1 leaves them in the parameters until the last pass of a step; stage 2 moves them out at
each pass, and stage 3 into a buffer that a pass after `zero_grad` overwrites. In stages 1 and 2 a pass after the one
that DeepSpeed takes for the last of a step begins anew, though no step was taken.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class MovedGradient:
    """The gradient of one parameter, number `index` of group `group` of DeepSpeed's optimizer `zero`."""

    cut = False

    def __init__(self, zero: Any, parameter: nn.Parameter, group: int, index: int) -> None:
        self._zero, self._parameter, self._group, self._index = zero, parameter, group, index

    def grads(self) -> list[Tensor]:
        found = self._parameter.grad, getattr(self._parameter, "grad_accum", None)
        return [grad for grad in found if grad is not None]

    def elsewhere(self) -> bool:
        between = torch._C._current_graph_task_id() == -1  # backward passes; the next one may overwrite what there is
        zero, group = self._zero, self._group
        if hasattr(zero, "fp16_groups"):  # stage 3
            return zero.micro_step_id > 0 or (between and zero._epilogue_ran_this_backward)
        if hasattr(zero, "fp32_groups_has_gradients"):  # BF16_Optimizer
            return zero.fp32_groups_has_gradients[group][self._index]
        if zero.cpu_offload and zero.get_param_id(self._parameter) in zero._offload_accumulated_param_ids:
            return True
        if zero.all_grad_tensors.get(group) is not None:
            return True
        reduced = zero.single_partition_of_fp32_groups[group].grad if zero.cpu_offload else None
        return between and (reduced is not None or zero.averaged_gradients.get(group) is not None)


def moved_gradients(zero: Any, parameters: Mapping[str, nn.Parameter]) -> dict[str, MovedGradient]:
    """Return where the gradients of parameters add up, by their names."""
    groups = next(getattr(zero, name) for name in ("fp16_groups", "bf16_groups", "bit16_groups") if hasattr(zero, name))
    places = {id(parameter): (i, j) for i, group in enumerate(groups) for j, parameter in enumerate(group)}
    return {name: MovedGradient(zero, each, *places[id(each)]) for name, each in parameters.items()}
