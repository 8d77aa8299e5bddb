"""From the sections of a recipe to torch's objects."""

import warnings

import timm
from timm.optim import Muon
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from clars.errors import RecipeError, UserError, nearest
from clars.lab.recipes import schema
from clars.lab.recipes.load import Resolved
from clars.lab.training import foreign
from clars.lab.training.schedule import rate_factor
from clars.optim import CLARS, LAMB, LARS


def build_optimizer(resolved: Resolved, model: nn.Module) -> Optimizer:
    """Make the recipe's optimizer at its peak rate.

    Raises:
        RecipeError: the optimizer section does not fit the model, e.g. an override that matches no layer.
    """
    settings = resolved.recipe.optimizer
    make = _of_timm if settings.name.startswith(schema.TIMM) else _MAKERS[settings.name]
    try:
        return make(model, resolved.peak_rate, settings)
    except ValueError as error:
        raise RecipeError(f"{resolved.path}: optimizer: {error}") from error


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _sgd(model: nn.Module, lr: float, settings: schema.Optimizer) -> SGD:
    nesterov = settings.nesterov and settings.momentum > 0
    return SGD(_trainable(model), lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=nesterov)


def _adamw(model: nn.Module, lr: float, settings: schema.Optimizer) -> AdamW:
    eps = {} if settings.eps is None else {"eps": settings.eps}
    return AdamW(_trainable(model), lr, (settings.momentum, 0.999), weight_decay=settings.weight_decay, **eps)


def _muon(model: nn.Module, lr: float, settings: schema.Optimizer) -> Muon:
    own = {"momentum": settings.momentum, "nesterov": settings.nesterov, "weight_decay": settings.weight_decay}
    return Muon(_trainable(model), lr, **own)


def _lamb(model: nn.Module, lr: float, settings: schema.Optimizer) -> LAMB:
    return LAMB(model, lr, (settings.momentum, 0.999), **_common(settings))


def _lars(model: nn.Module, lr: float, settings: schema.Optimizer) -> LARS:
    return LARS(model, lr, **_common(settings), **_of_momentum(settings))


def _clars(model: nn.Module, lr: float, settings: schema.Optimizer) -> CLARS:
    return CLARS(model, lr, **_measured(settings), **_common(settings), **_of_momentum(settings))


def _author2019(model: nn.Module, lr: float, settings: schema.Optimizer) -> CLARS:
    return CLARS.author2019(model, lr, **_measured(settings), **_common(settings), **_of_momentum(settings))


def _of_timm(model: nn.Module, lr: float, settings: schema.Optimizer) -> Optimizer:
    name = settings.name.removeprefix(schema.TIMM)
    if name not in timm.optim.list_optimizers():
        raise ValueError(
            f"name = {settings.name!r}: timm {timm.__version__} has no optimizer {name!r}."
            f"{nearest(name, timm.optim.list_optimizers())}"
        )
    if "momentum" in settings.model_fields_set and not timm.optim.get_optimizer_info(name).has_momentum:
        warnings.warn(
            f"optimizer.momentum has no effect with optimizer.name = {settings.name!r}; see its betas.", stacklevel=3
        )
    given = dict(settings.arguments) if settings.eps is None else {"eps": settings.eps, **settings.arguments}
    decayed = {"weight_decay": settings.weight_decay, "momentum": settings.momentum}
    try:
        made = timm.optim.create_optimizer_v2(model, name, lr, **decayed, **given)
    # Makers reject what they are given, and machines that lack something, in as many ways as there are authors.
    except Exception as error:
        raise ValueError(f"name = {settings.name!r} cannot be made with {given or 'no arguments'}: {error}") from error
    if not isinstance(made, SGD):
        foreign.require(model, made)
    return made


_MAKERS = {
    **{"sgd": _sgd, "adamw": _adamw, "muon": _muon},
    **{"lamb": _lamb, "lars": _lars, "clars": _clars, "author2019": _author2019},
}


def _measured(settings: schema.Optimizer) -> dict[str, object]:
    """Return whose norms CLARS forms."""
    given = {name: getattr(settings, name) for name in ("group", "fraction") if settings.estimator != "exact"}
    return given | {"estimator": settings.estimator}


def _common(settings: schema.Optimizer) -> dict[str, object]:
    """Return what all layer-wise methods take."""
    given = {name: getattr(settings, name) for name in ("weight_decay", "layers", "overrides")}
    return given if settings.eps is None else given | {"eps": settings.eps}


def _of_momentum(settings: schema.Optimizer) -> dict[str, object]:
    """Return what CLARS and LARS take beside."""
    names = ("momentum", "nesterov", "trust_coefficient", "norm_floor", "decay_in_ratio", "rate_in_buffer")
    given = {name: getattr(settings, name) for name in names}
    return given if settings.max_ratio is None else given | {"max_ratio": settings.max_ratio}


def require_strategy(settings: schema.Optimizer, strategy: str) -> None:
    """Check that what the optimizer section asks for is right under a strategy.

    Raises:
        UserError: it is not: Muon orthogonalises whole matrices, the state of others' optimizers is kept whole, and
            DeepSpeed clips by a setting of its own.
    """
    of_others = settings.name in ("adamw", "muon") or settings.name.startswith(schema.TIMM)
    if of_others and strategy not in ("single", "ddp"):
        raise UserError(f"optimizer.name = {settings.name!r} cannot be had under {strategy}. Launch with ddp.")
    if settings.clip_norm is not None and strategy.startswith("zero"):
        raise UserError(f"optimizer.clip_norm cannot be had under {strategy}. Launch with ddp or fsdp2.")


def build_schedule(resolved: Resolved, optimizer: Optimizer, steps_per_epoch: int, done: int = 0) -> LambdaLR:
    """Make the schedule of the rate, one step of it per optimizer step, with `done` steps behind it."""
    recipe = resolved.recipe
    steps = recipe.epochs * steps_per_epoch
    scaling = resolved.peak_rate / recipe.schedule.base_rate
    for group in optimizer.param_groups:
        # timm's layer_decay leaves a factor, which only timm's own schedules would multiply by
        group.setdefault("initial_lr", group["lr"] * group.get("lr_scale", 1.0))
    # last_epoch counts steps; the schedule is asked once more, after the last step, for a rate that is not used
    return LambdaLR(
        optimizer,
        lambda step: rate_factor(recipe.schedule, min(step, steps - 1), steps, steps_per_epoch, scaling),
        last_epoch=done - 1,
    )
