"""What a run would do, without doing it: its data, its steps, how its batch is cut, and the memory it would take."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from clars.lab import data
from clars.lab.launching import devices
from clars.lab.launching.division import divide
from clars.lab.recipes.load import Resolved
from clars.lab.recipes.schema import Recipe
from clars.lab.terminal import plural
from clars.lab.training.batches import batches_of
from clars.lab.training.objective import network

COPIES = {
    "sgd": 3,
    "lars": 3,
    "clars": 3,
    "author2019": 3,
    "muon": 3,
    "adamw": 4,
    "lamb": 4,
}  # weights, gradients, state
CLASSES = 1000  # where the data cannot tell
_PROBE = 2  # examples of a pass on no memory, by which the activations of one are counted


def forecast(resolved: Resolved, processes: int | str, micro_batch: int | None) -> Iterator[tuple[str, str]]:
    """Yield what a run would do, as pairs of a subject and a text.

    Args:
        resolved: the recipe with its changes.
        processes: how many the launch has, or "gpu" for as many as there are GPUs.
        micro_batch: most examples of a process and pass, None for no limit.

    Where the data are not on this machine, nothing is downloaded: what depends on them is left out.

    Raises:
        UserError: the run would not begin: its data cannot be used, or its batch cannot be cut.
    """
    recipe = resolved.recipe
    world = processes if isinstance(processes, int) else max(1, devices.gpus())
    cut = divide(recipe.batch_size, world, micro_batch, recipe.optimizer.together)
    yield "recipe", f"{resolved.full_name}: {recipe.description}"
    here, text = data.reachable(recipe.data)
    yield "data", text
    classes = CLASSES
    if here:
        splits = data.load(recipe.data, evaluation=recipe.evaluation.split)
        steps, classes = batches_of(splits.train, cut, 0, 0).steps, splits.num_classes
        train, test = len(splits.train), len(splits.test)
        yield "examples", f"{train:,} to train on, {test:,} to measure on ({recipe.evaluation.split})"
        yield "steps", f"{steps * recipe.epochs:,} = {recipe.epochs} epochs x {steps:,}"
    parts = plural(cut.micro_batch, "example"), plural(cut.accumulation, "pass", "passes")
    yield "batch", f"{cut.global_batch} = {' x '.join((*parts, plural(world, 'process', 'processes')))}"
    schedule = recipe.schedule
    yield (
        "rate",
        f"peak {resolved.peak_rate:g}, after {schedule.warmup_epochs:g} epochs of warmup; then {schedule.name}",
    )
    assumed = "" if here else f"; for {CLASSES:,} classes"
    if recipe.model.pretrained:
        yield (
            "begins with",
            f"weights of {recipe.model.name if recipe.model.pretrained is True else recipe.model.pretrained}",
        )
    yield "memory", _memory(recipe, classes, cut.micro_batch) + assumed


def activations(model: nn.Module, shape: tuple[int, int, int], views: int = 1) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, for one example [channels, height, width].

    Nothing is computed: the pass is on torch's meta device, where attention keeps its whole matrix, which kernels of
    devices may not. Parameters do not count. `views` are how many tensors of images the model takes.
    """
    kept: dict[int, int] = {}
    own = {id(parameter) for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)  # so that no other storage has its place
        return tensor

    alive: list[torch.UntypedStorage] = []
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*(torch.empty(_PROBE, *shape, device="meta") for _ in range(views)))
    return sum(kept.values()) // _PROBE


def _memory(recipe: Recipe, classes: int, micro_batch: int) -> str:
    pixels, channels = recipe.data.image_size, recipe.data.channels
    model, views = network(recipe, classes).to("meta"), 1 if recipe.self_supervised is None else 2
    numbers = sum(parameter.numel() for parameter in model.parameters())
    fixed = 4 * numbers * (COPIES.get(recipe.optimizer.name, 4) + (recipe.ema is not None))
    try:
        moving = activations(model, (channels, pixels, pixels), views) * micro_batch
    except Exception:  # a network of somebody's own may do what torch cannot follow without numbers
        return f"{_size(fixed)} for {numbers:,} weights, their gradients and the optimizer; activations unknown"
    what = f"{numbers:,} weights, gradients, optimizer"
    return f"about {_size(fixed + moving)} a process in float32: {_size(fixed)} ({what}), {_size(moving)} activations"


def _size(number: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB")):
        if number >= unit:
            return f"{number / unit:,.1f} {name}"
    return f"{number / 2**10:,.0f} KiB"
