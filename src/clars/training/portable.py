"""Whole weights and whole momentum, by name in the model, out of and into whatever holds them."""

from torch import Tensor, nn
from torch.optim import Optimizer


def weights(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return weights and buffers on the processor."""
    inner = getattr(model, "module", model)
    return {name: value.detach().cpu() for name, value in inner.state_dict().items()}


def gather(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return weights and buffers, and momentum, on the processor."""
    inner = getattr(model, "module", model)
    buffers = {name: optimizer.state[p].get("momentum_buffer") for name, p in inner.named_parameters()}
    return weights(model, optimizer), {name: value.cpu() for name, value in buffers.items() if value is not None}


def scatter(model: nn.Module, optimizer: Optimizer, weights: dict[str, Tensor], momentum: dict[str, Tensor]) -> None:
    """Put weights, buffers and momentum back."""
    inner = getattr(model, "module", model)
    inner.load_state_dict(weights)
    for name, parameter in inner.named_parameters():
        if name in momentum:
            optimizer.state[parameter]["momentum_buffer"] = momentum[name].to(parameter.device, copy=True)
