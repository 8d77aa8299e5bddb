"""The exponential moving average of weights and buffers over the steps, by timm's ModelEmaV3."""

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from clars.errors import UserError
from clars.lab.recipes.load import Resolved


class Average:
    """The network whose weights a recipe wants evaluated and saved: the average, or without `ema` the trained one.

    To be made before an optimizer instruments the model, which is copied here. The first step's weights are taken as
    they are; from then on the average moves by 1 - decay of the difference.

    Args:
        resolved: the recipe.
        model: without the wrapper of a strategy.
    """

    def __init__(self, resolved: Resolved, model: nn.Module) -> None:
        settings = resolved.recipe.ema
        self.inner = ModelEmaV3(model, decay=settings.decay, use_warmup=settings.warmup) if settings else None

    def begin(self, strategy: str, device: torch.device, state: dict[str, Tensor]) -> None:
        """Go to a device, and on from the state of a resumed run.

        Raises:
            UserError: the strategy leaves no process with whole weights, or with float32 ones.
        """
        if self.inner is None:
            return
        if strategy not in ("single", "ddp"):
            raise UserError(f"ema cannot be had under {strategy}, which cuts or copies the weights. Launch with ddp.")
        self.inner.to(device)
        if state:
            self.inner.module.load_state_dict(state)

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after an optimizer step, the first of which is 1."""
        if self.inner is not None:
            self.inner.update(model, step=step)

    def network(self, otherwise: nn.Module) -> nn.Module:
        """Return the average's network, or `otherwise` without one."""
        return otherwise if self.inner is None else self.inner.module

    def state(self) -> dict[str, Tensor]:
        """Return the average's state dict, on the CPU; empty without one."""
        if self.inner is None:
            return {}
        return {name: value.detach().cpu() for name, value in self.inner.module.state_dict().items()}
