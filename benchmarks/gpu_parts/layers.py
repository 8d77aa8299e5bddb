"""The weight gradient of each convolution of ResNet-50 by every method, and the backward pass of normalisations."""

import statistics
import time
from collections.abc import Callable

import timm
import torch
from part import Part
from torch import nn
from torch.nn import functional as F

import clars
import clars.lab.models
from clars.native import where
from clars.norms.methods.chooser import applying

BATCH, PIXELS = 256, 224
NORMALISATIONS = {
    "BatchNorm, 256 x 64 x 112 x 112": (lambda: nn.BatchNorm2d(64), (256, 64, 112, 112)),
    "BatchNorm, 256 x 256 x 56 x 56": (lambda: nn.BatchNorm2d(256), (256, 256, 56, 56)),
    "BatchNorm, 256 x 2048 x 7 x 7": (lambda: nn.BatchNorm2d(2048), (256, 2048, 7, 7)),
    "GroupNorm, 256 x 256 x 56 x 56": (lambda: nn.GroupNorm(32, 256), (256, 256, 56, 56)),
    "LayerNorm, 256 x 197 x 384": (lambda: nn.LayerNorm(384), (256, 197, 384)),
}
TIMES = 5
HOPELESS = 30.0  # times the operations of the cheapest: not tried


def convolutions(part: Part) -> None:
    """Note each size once: seconds of the library's own weight gradient, and of each method that applies."""
    network, batch, pixels = ("resnet8", 4, 16) if part.quick else ("resnet50", BATCH, PIXELS)
    torch.manual_seed(0)
    model = timm.create_model(network, num_classes=10).to(part.device, memory_format=torch.channels_last)
    rows, seen = part.result["convolutions"], set()

    def note(layer: str, sizes, operands, method) -> None:
        if sizes in seen or not sizes.kernel:
            return
        seen.add(sizes)
        chooser, every = norms.estimator.chooser, applying(sizes)
        least = min(method.operations(sizes) for method in every)
        tried = [method for method in every if method.operations(sizes) <= HOPELESS * least]
        rows.append(
            {
                "layer": layer,
                "gy": list(operands.gy.shape),
                "weight": list(operands.weight.shape),
                "stride": list(sizes.stride),
                "own": where.seconds(operands.gradient, sizes.device),
                "methods": chooser.seconds(sizes, operands, tried),
            }
        )
        part.write()

    norms = clars.ExampleNorms(model, timed=False)
    norms.estimator.report_to(note)
    x = torch.randn(batch, 3, pixels, pixels, device=part.device).contiguous(memory_format=torch.channels_last)
    with torch.autocast(part.device, torch.bfloat16):
        loss = F.cross_entropy(model(x), torch.zeros(batch, dtype=torch.long, device=part.device))
    loss.backward()
    norms.remove()


def normalisation(part: Part, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, float]:
    """Return the seconds of the backward pass alone, plain and with the norms."""
    if part.quick:
        shape = (2, *shape[1:2], *(min(size, 4) for size in shape[2:])) if len(shape) > 3 else (2, 5, shape[-1])
    x = torch.randn(shape, device=part.device)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    x = x.requires_grad_()
    gy = torch.randn_like(x)
    plain, tracked = (make().to(part.device) for _ in range(2))
    norms = clars.ExampleNorms(tracked)
    found = {"plain": _backward(plain, x, gy), "with norms": _backward(tracked, x, gy)}
    norms.remove()
    return found


def _backward(module: nn.Module, x: torch.Tensor, gy: torch.Tensor) -> float:
    taken = []
    for _ in range(TIMES + 1):
        module.zero_grad()
        x.grad = None
        with torch.autocast(x.device.type, torch.bfloat16):
            y = module(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        y.backward(gy.to(y.dtype))
        if x.is_cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def main() -> None:
    part = Part(__doc__)
    torch.backends.cudnn.benchmark = True
    part.result = {"convolutions": [], "normalisations": {}}
    for name, (make, shape) in NORMALISATIONS.items():
        part.attempt(part.result["normalisations"], name, lambda m=make, s=shape: normalisation(part, m, s))
    part.attempt(part.result, "problem of the convolutions", lambda: convolutions(part))


if __name__ == "__main__":
    main()
