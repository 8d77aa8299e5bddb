"""Everything public, as a user's own code calls it; checked by mypy in `make lint`, and never run."""

from pathlib import Path

import torch
from torch import Tensor, nn

import clars


def train(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, clars.LayerStats]:
    """Take a step with each optimizer."""
    norms: clars.ExampleNorms = clars.ExampleNorms(model, estimator="exact")
    noise: clars.NoiseScale = clars.NoiseScale(model, norms)
    optimizers: list[torch.optim.Optimizer] = [
        clars.CLARS(model, lr=1.0, momentum=0.9, overrides={"*.bias": {"adapt": False}}, norms=norms),
        clars.CLARS.author2019(model, lr=1.0),
        clars.LARS(model, lr=1.0, layers="parameter"),
        clars.LAMB(model, lr=1.0, betas=(0.9, 0.99)),
    ]
    for optimizer in optimizers:
        nn.functional.cross_entropy(model(images), labels).backward()
        noise.update()
        optimizer.step()
        optimizer.zero_grad()
    sums: dict[str, Tensor] = norms.sums()
    batch: float | None = noise.batch_size()
    by_layer: dict[str, float | None] = noise.layers()
    norms.reset()
    norms.remove()
    print(len(sums), batch, by_layer)
    last: clars.CLARS = clars.CLARS(model, lr=1.0, estimator="group", group=8)
    return last.layer_stats()


def others(path: Path) -> list[str]:
    """Load a checkpoint, list its layers, and see what a mistake is."""
    try:
        network: nn.Module = clars.load(path)
    except clars.UserError as error:
        return [str(error)]
    found: list[clars.Layer] = clars.layers(network, by="module")
    return [layer.name for layer in found]
