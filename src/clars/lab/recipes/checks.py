"""What a schema of single values cannot say: settings that exclude each other, or that have no effect."""

from collections.abc import Iterator

from clars.lab.recipes.schema import TIMM, Data, Optimizer, Recipe

_LAYERWISE_ONLY = ("layers", "overrides")
_MOMENTUM_ONLY = ("trust_coefficient", "norm_floor", "max_ratio", "decay_in_ratio", "rate_in_buffer")
_CLARS_ONLY = ("estimator", "group", "fraction")
_CLARS = ("clars", "author2019")
_NOT_TIMM = ("nesterov", *_LAYERWISE_ONLY, *_MOMENTUM_ONLY, *_CLARS_ONLY)
_NO_EFFECT = {
    "sgd": (*_LAYERWISE_ONLY, *_MOMENTUM_ONLY, "eps", *_CLARS_ONLY),
    "muon": (*_LAYERWISE_ONLY, *_MOMENTUM_ONLY, "eps", *_CLARS_ONLY),
    "adamw": ("nesterov", *_LAYERWISE_ONLY, *_MOMENTUM_ONLY, *_CLARS_ONLY),
    "lamb": ("nesterov", *_MOMENTUM_ONLY, *_CLARS_ONLY),
    "lars": _CLARS_ONLY,
}


def _no_effect(optimizer: Optimizer) -> tuple[str, ...]:
    """Return the settings that a method does not have."""
    if optimizer.name.startswith(TIMM):
        return _NOT_TIMM
    return (*_NO_EFFECT.get(optimizer.name, ()), "arguments")


EMBEDDED = ("digits", "glyphs")  # data sets that this package brings
FASHION = "fashion"
_OF_OTHERS = ("validation_fraction", "hold_out", "config", "image_column", "label_column", "train_split", "test_split")
_HUB_ONLY = ("config", "image_column", "label_column", "train_split", "test_split", "in_memory", "streaming")


def embedded(data: Data) -> bool:
    """Say whether the data are those that this package brings, which have splits of their own."""
    return data.name in EMBEDDED and data.path is None


def impossible(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the key and the reason of every setting that another one rules out."""
    data, schedule = recipe.data, recipe.schedule
    if schedule.warmup_epochs >= recipe.epochs:
        yield (
            "schedule.warmup_epochs",
            f"= {schedule.warmup_epochs:g} leaves nothing of epochs = {recipe.epochs}; warm up less or train longer",
        )
    if schedule.frozen_head_epochs >= recipe.epochs:
        yield (
            "schedule.frozen_head_epochs",
            f"= {schedule.frozen_head_epochs:g} never trains the classifier in epochs = {recipe.epochs}",
        )
    if schedule.frozen_head_epochs and recipe.optimizer.name == "lamb":  # whose bias correction counts all steps
        yield "schedule.frozen_head_epochs", "cannot be combined with optimizer.name = 'lamb'; leave one of them out"
    yield from _impossible_estimator(recipe)
    yield from _impossible_beginning(recipe)
    yield from _impossible_augmentation(recipe)
    for key in ("mean", "std"):
        values = getattr(data, key)
        if values is not None and len(values) != data.channels:
            yield f"data.{key}", f"= {values} must have a value for each of data.channels = {data.channels}"
    if data.train_split == data.test_split and not embedded(data) and recipe.evaluation.split == "test":
        yield "data.test_split", f"= {data.test_split!r} is what is trained on; name another, or evaluate on validation"
    if data.streaming and data.name == FASHION:
        yield "data.streaming", f"= true cannot be with data.name = {FASHION!r}, whose images are held; leave it out"
    if data.streaming and data.hold_out:
        yield "data.hold_out", "= true cannot be held out of a stream; leave it out"
    if data.in_memory and data.streaming:
        yield "data.in_memory", f"= {_written(data)} is the opposite of data.streaming = true"
    if data.streaming and recipe.evaluation.split == "validation":
        yield "evaluation.split", "= 'validation' cannot be held out of a stream; name a split by data.test_split"
    if data.in_memory and data.augmentation == "imagenet":
        yield (
            "data.in_memory",
            f"= {_written(data)} holds images of one size; data.augmentation = 'imagenet' cuts from the whole ones."
            " Leave it out, and set data.workers = 'auto'",
        )


def _written(data: Data) -> str:
    return "'device'" if data.in_memory == "device" else "true"


def _impossible_estimator(recipe: Recipe) -> Iterator[tuple[str, str]]:
    optimizer = recipe.optimizer
    if optimizer.name not in _CLARS and optimizer.estimator != "exact":
        yield (
            "optimizer.estimator",
            f"= {optimizer.estimator!r} cannot be: optimizer.name = {optimizer.name!r} forms no norms of examples; "
            "leave it out, or name 'clars'",
        )
    if optimizer.estimator == "subset" and "group" in optimizer.model_fields_set:
        yield "optimizer.group", "cannot be combined with optimizer.estimator = 'subset'; leave one of them out"
    if optimizer.estimator == "group" and "fraction" in optimizer.model_fields_set:
        yield "optimizer.fraction", "cannot be combined with optimizer.estimator = 'group'; leave one of them out"


def _impossible_beginning(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.init is not None and recipe.model.pretrained:
        yield "init", f"= {recipe.init!r} cannot be with model.pretrained: a network begins with one of them"
    if recipe.self_supervised is None:
        return
    without = {
        "init": recipe.init,
        "mixing": recipe.mixing,
        "label_smoothing": recipe.label_smoothing,
        "schedule.frozen_head_epochs": recipe.schedule.frozen_head_epochs,
    }
    for key, value in without.items():
        if value:
            yield key, "has no meaning with self_supervised, where no classifier is trained; leave it out"
    if recipe.data.streaming:
        yield "data.streaming", "= true cannot be with self_supervised, whose accuracy takes all images; leave it out"
    if recipe.data.augmentation != "none":
        yield (
            "data.augmentation",
            f"= {recipe.data.augmentation!r} cannot be with self_supervised, which makes views of whole images; leave"
            " it out",
        )


def _impossible_augmentation(recipe: Recipe) -> Iterator[tuple[str, str]]:
    data, mixing = recipe.data, recipe.mixing
    if mixing is not None and not mixing.mixup and not mixing.cutmix:
        yield "mixing", "mixes nothing; give mixing.mixup, mixing.cutmix, or both"
    if mixing is not None and recipe.batch_size % 2:
        yield "batch_size", f"= {recipe.batch_size} cannot be with mixing, which takes images by twos"
    if data.randaugment is not None and (embedded(data) or data.name == FASHION or data.in_memory):
        held = f"data.in_memory = {_written(data)}" if data.in_memory else f"data.name = {data.name!r}"
        yield "data.randaugment", f"changes images as they are decoded, and {held} holds them decoded; leave it out"


def ignored(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the key and the reason of every setting that is written down but changes nothing."""
    data, optimizer, schedule = recipe.data, recipe.optimizer, recipe.schedule
    if schedule.name != "polynomial" and "power" in schedule.model_fields_set:
        yield "schedule.power", f"schedule.name = {schedule.name!r}"
    for key in _no_effect(optimizer):
        if key in optimizer.model_fields_set:
            yield f"optimizer.{key}", f"optimizer.name = {optimizer.name!r}"
    if recipe.layer_statistics and (optimizer.name in ("sgd", "adamw", "muon") or optimizer.name.startswith(TIMM)):
        yield "layer_statistics", f"optimizer.name = {optimizer.name!r}"
    without = optimizer.momentum == 0 and "nesterov" not in _no_effect(optimizer)
    if without and optimizer.nesterov and "nesterov" in optimizer.model_fields_set:
        yield "optimizer.nesterov", "optimizer.momentum = 0"
    for key in ("fraction", "group") if optimizer.name in _CLARS and optimizer.estimator == "exact" else ():
        if getattr(optimizer, key) is not None:
            yield f"optimizer.{key}", "optimizer.estimator = 'exact'"
    for key in _HUB_ONLY if embedded(data) else ():
        if key in data.model_fields_set and not (key == "in_memory" and data.in_memory == "device"):
            yield f"data.{key}", f"data.name = {data.name!r}"
    if "prefetch" in data.model_fields_set and data.workers == 0:
        yield "data.prefetch", "data.workers = 0"
    elif "prefetch" in data.model_fields_set and data.workers == "auto" and (data.in_memory or embedded(data)):
        yield "data.prefetch", "data.workers = 'auto', which is 0 for images in memory"
    if data.in_memory == "device" and data.workers not in (0, "auto"):
        yield "data.workers", "data.in_memory = 'device'"
    if "shuffle_buffer" in data.model_fields_set and not data.streaming:
        yield "data.shuffle_buffer", "data.streaming = false"
    counted = data.name == "glyphs" if embedded(data) else data.streaming or data.name == FASHION
    if data.train_examples is not None and not counted:
        yield "data.train_examples", f"data.name = {data.name!r}"
    if data.name == FASHION:
        for key in _OF_OTHERS:
            if key in data.model_fields_set:
                yield f"data.{key}", f"data.name = {data.name!r}"
        if data.in_memory and data.in_memory != "device":
            yield "data.in_memory", f"data.name = {data.name!r}, whose images are held in memory"
    if "warmup_from" in schedule.model_fields_set and not schedule.warmup_epochs:
        yield "schedule.warmup_from", "schedule.warmup_epochs = 0"
