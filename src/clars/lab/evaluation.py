"""Accuracy and loss over a whole data set, every example counted once on any number of processes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from clars.lab.data import Images, batched
from clars.lab.loading.loader import Loader


class Scores(NamedTuple):
    """Percentages over all examples, and the mean cross entropy.

    `top5` is None below six classes, all of them after an epoch without an evaluation.
    """

    top1: float | None
    top5: float | None
    loss: float | None


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, images: Images, batch_size: int, workers: int = 0) -> Scores:
    """Measure `model` on `images`; each process takes every world-size-th example. A non-finite output is wrong.

    A forward pass may be a matter of all processes, where parameters are sharded. So all take as many, and one that
    has no example left passes the first once more, without counting it.
    """
    model.eval()
    world = accelerator.num_processes
    real, total = [], 0  # whether the parts that are under way have examples of their own; the number of all

    def parts() -> Iterator[list]:
        nonlocal total
        for group in batched(images.items(), world * batch_size):
            own = group[accelerator.process_index :: world]
            total += len(group)
            real.append(len(own) > 0)
            yield own if len(own) else group[:1]

    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for number, (x, y) in enumerate(Loader(images, parts(), accelerator.device, workers)):
        logits = model(x.to(dtype_of(model))).float()
        if real[number]:
            sums += _sums(logits, y)
    model.train()
    for module in model.modules():
        if isinstance(module, FSDPModule):  # whose outermost parameters would stay whole until the next backward pass
            module.reshard()
    top1, top5, loss, count = accelerator.reduce(sums).tolist()
    if count != total:
        raise AssertionError(f"{count:.0f} examples were counted of {total}")
    return Scores(100 * top1 / count, 100 * top5 / count if logits.shape[1] > 5 else None, loss / count)


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the type of the model's parameters, which DeepSpeed changes for bf16 without changing inputs."""
    return next(model.parameters(), torch.empty(0)).dtype


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    finite = logits.isfinite().all(1)
    best = logits.topk(min(5, logits.shape[1]), 1).indices == labels.unsqueeze(1)
    right = best & finite.unsqueeze(1)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([right[:, 0].sum(), right.sum(), loss, loss.new_full((), len(labels))]).double()


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers, BatchNorm's running statistics among them.

    DistributedDataParallel does so before each forward pass, other strategies never; what a process has kept for
    itself is then thrown away here, so that the numbers do not depend on the strategy.
    """
    for buffer in model.buffers():
        broadcast(buffer)


def recalibrate(accelerator: Accelerator, model: nn.Module, images: Images, batch_size: int, workers: int = 0) -> None:
    """Replace BatchNorm's running statistics by the average over `images`, the same on every process.

    The running averages of a run with few steps still hold a part of their initial values (0.9^20 = 12 % after 20
    steps at torch's momentum), and then say more about the initialisation than about the network.
    """
    loader = Loader(images, batched(images.items(), batch_size), accelerator.device, workers)
    update_bn((x.to(dtype_of(model)) for x, _ in loader), model, accelerator.device)
