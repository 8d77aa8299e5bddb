"""The gradient noise scale of a run, measured beside whatever optimizer it has."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from clars.errors import UserError
from clars.lab.runs.record import finite
from clars.lab.runs.resume import ANEW, State
from clars.layers import layers
from clars.norms import NoiseScale
from clars.sharding.find import is_engine

LINES = 100  # over a run, about, where no interval is given


def interval(asked: int | None, state: State, steps: int, path: Path) -> int | None:
    """Return after how many steps each a line is written; None where nothing is measured.

    Args:
        asked: the option; 0 for that of the state, or else for about `LINES` over the run.
        state: what the run goes on from.
        steps: of the whole run.
        path: the state's file.

    Raises:
        UserError: the run began with another interval, or without any: its lines would not be those of one run.
    """
    begun = state.progress.noise_every
    if state.model and ((asked is None) != (begun is None) or (asked and asked != begun)):
        with_which = f"with --noise-scale {begun}" if begun else "without --noise-scale"
        raise UserError(f"{path} is of a run that began {with_which}. Go on so, or: {ANEW}")
    return None if asked is None else asked or begun or max(1, round(steps / LINES))


def expected(model: nn.Module, inner: Optimizer) -> dict[str, Tensor]:
    """Return a tensor of the right shape for each layer whose noise scale is measured beside `inner`."""
    norms = getattr(inner, "norms", None)
    return {layer.name: torch.zeros(3) for layer in (norms.layers if norms else layers(model))}


class Noise:
    """A `NoiseScale` of the gradients that a run steps by, and lines of what it tells; nothing without `every`.

    Beside CLARS the norms are the optimizer's own. With a part of the network frozen, or left out of CLARS's
    adaptation, they are those of the rest.

    Args:
        every: steps between lines.
        model: what the strategy returned.
        inner: the optimizer that steps, whatever wraps it.
        state: what `state` returned, or nothing.

    Raises:
        UserError: as for `NoiseScale`.
    """

    def __init__(self, every: int | None, model: nn.Module, inner: Optimizer, state: dict[str, Tensor]) -> None:
        self.every, self._scale, self._engine = every, None, is_engine(model)
        if every is None:
            return
        self._scale = NoiseScale(model, getattr(inner, "norms", None))
        if not hasattr(inner, "norms"):
            self._scale.norms.advise(_remedy)
        names = [layer.name for layer in self._scale.norms.layers]  # in their own order
        rows = {name: state[name].tolist() for name in names if name in state}
        self._scale.load_state_dict({"layers": rows})
        if self._engine:
            self._update_within(model)

    def before_step(self) -> None:
        """Take account of a gradient that is whole, right before the step. DeepSpeed's engine has done so itself."""
        if self._scale is not None and not self._engine:
            self._scale.update()

    def line(self, step: int) -> dict[str, object] | None:
        """Return the line of a step, null for what is unknown or infinite; None where none is due."""
        if self.every is None or step % self.every:
            return None
        by_layer = {name: finite(value) for name, value in self._scale.layers().items()}
        return {"step": step, "noise_scale": finite(self._scale.batch_size()), "layers": by_layer}

    def state(self) -> dict[str, Tensor]:
        """Return what to go on from: float64 [3] by layer, the averages of both terms, and their weight."""
        rows = self._scale.state_dict()["layers"] if self._scale else {}
        return {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}

    def end(self) -> None:
        """Give the network its own forward back, unless the norms are the optimizer's."""
        if self._scale is not None:
            self._scale.remove()

    def _update_within(self, engine: nn.Module) -> None:
        """Have the engine's step begin with an update: under DeepSpeed, accelerate steps at the end of `backward`."""
        step = engine.step

        def stepping(*arguments, **options):
            self._scale.update()
            return step(*arguments, **options)

        engine.step = stepping


def _remedy(refused: Sequence[str]) -> str:
    return "The noise scale needs them. Train without --noise-scale."
