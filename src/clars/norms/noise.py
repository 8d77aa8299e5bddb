"""The gradient noise scale: the batch size at which the gradient's noise is as large as the gradient."""

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from clars.errors import UserError
from clars.layers import Layer
from clars.native import where
from clars.native.squares import squared_norms
from clars.norms.tracker import ExampleNorms
from clars.precision import wide
from clars.sharding.find import is_engine, layout_of, plain_layout, plain_model
from clars.sharding.layout import Layout

Number = TypeVar("Number", float, Tensor)
ONE_GROUP = 1e-6  # share of pairs of examples in different groups below which there is but one group


def estimates(
    batch_square: Number, sum_of_squares: Number, examples: Number, group_squares: Number
) -> tuple[Number, Number]:
    """Return unbiased estimates of tr(Sigma) and ||G||^2, of the examples' gradients' covariance and mean.

    With contributions c_u of groups of m_u out of B examples that sum to the gradient g of an averaged loss,

        E ||g||^2 = ||G||^2 + tr(Sigma) / B,     E sum_u ||c_u||^2 = ||G||^2 * sum_u (m_u / B)^2 + tr(Sigma) / B,

    which for groups of one are the formulas of McCandlish et al. 2018 (arXiv 1812.06162, appendix A.1). Both estimates
    are in the unit of the squared gradient.

    Args:
        batch_square: ||g||^2.
        sum_of_squares: sum_u ||c_u||^2.
        examples: B.
        group_squares: sum_u m_u^2; there is no estimate where all examples are one group.
    """
    true_square = (batch_square - sum_of_squares) / (1 - group_squares / examples**2)
    return examples * (batch_square - true_square), true_square


class NoiseScale:
    """Follows tr(Sigma) / ||G||^2, B_simple, of a model in training, whatever the optimizer.

    McCandlish et al. 2018 (arXiv 1812.06162) call it the simple noise scale: up to about that batch size, a larger
    batch saves about as many steps as it is larger. Its two terms are estimated without bias from the norm of the
    gradient and those of the examples (see `estimates`), and each is averaged over the steps before they are divided.

        noise = clars.NoiseScale(model)
        ...
        loss.backward()
        noise.update()
        optimizer.step()
        print(noise.batch_size())

    It belongs between the backward pass and the step, before the gradient is clipped, and before a GradScaler's
    `unscale_`: what else is done to the gradient is taken for its noise. Of a gradient that adds up over
    several passes what counts is the whole: calls in between are harmless, and cost what a call costs. Under
    DistributedDataParallel, `fully_shard` and DeepSpeed it is that of the global batch, and all processes call it; it
    takes one small all-reduce, and waits for no device.

    Args:
        model: the model, plain or wrapped; with DeepSpeed, the engine.
        norms: the `ExampleNorms` at work in the model, such as an optimizer's `norms`; by default one is made.
        estimator: of the `ExampleNorms` that is made: "exact", or "group", which may cost less and tells less.
        group: the examples of a group.
        smoothing: how much of the averages stays at each step, in [0, 1).
        process_group: the processes over which gradients are averaged; by default those of the wrapper, or all.

    Raises:
        ValueError: a smoothing outside [0, 1), options of an `ExampleNorms` beside one.
        UnsupportedLayerError: as for `ExampleNorms`.
    """

    def __init__(
        self,
        model: nn.Module,
        norms: ExampleNorms | None = None,
        *,
        estimator: str = "exact",
        group: int | None = None,
        smoothing: float = 0.95,
        process_group: "distributed.ProcessGroup | None" = None,
    ) -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing!r} is no share that stays: use a number from 0 up to below 1.")
        if norms is not None and (estimator != "exact" or group is not None):
            raise ValueError("estimator and group belong to the ExampleNorms given as norms; set them there.")
        self.smoothing = smoothing
        self.model = plain_model(model)
        self._own = norms is None
        self.norms = ExampleNorms(self.model, estimator, group=group) if norms is None else norms
        self._names = [layer.name for layer in self.norms.layers]
        self._number = {name: k for k, layer in enumerate(self.norms.layers) for name, _ in _names(layer)}
        self._layer_of: tuple[list[int], Tensor] | None = None  # of the gradients, on their device
        self._group = process_group or getattr(model, "process_group", None)
        self._layout: Layout | None = None
        if is_engine(model):
            self._layout = layout_of(model.optimizer, model)
            if self._layout.steps_in_parts:
                self._layout.reached = set(self._layout.parameters)
                self.norms.held_by(self._layout.holders)
        self._removed = False
        self._last_pass: object = None
        self._generation = self.norms.generation
        # [K, 3], averages of both terms, and their weight: without the latest gradient, and with it
        self._before: Tensor | None = None
        self._now: Tensor | None = None
        self._examples: Tensor | None = None  # how many the latest gradient is made of

    @torch.no_grad()
    def update(self) -> None:
        """Take account of the gradient that is there.

        Without effect where no backward pass was made since the last call, where a gradient that is still adding up is
        out of sight, where it is not finite, and where all examples are one group: a batch of one, above all.

        Raises:
            ValueError: after `remove()`, or when a later tracker took the model; no backward pass has left a gradient;
                it is called within a step that is captured.
        """
        if self._removed:
            raise UserError("update() after remove(): the model is tracked no more. Make another NoiseScale.")
        if where.is_capturing():
            raise UserError(
                "update() within a step that is captured would be repeated as it was. Call it after the step."
            )
        totals = self.norms.totals()
        if not totals:
            raise UserError(
                "update() without a backward pass that has left a gradient: call it after loss.backward(), and before "
                "the gradient is cleared. Under DeepSpeed, make the NoiseScale with the engine."
            )
        layout = self._present_layout()
        if self._last_pass == self.norms.last_pass or not layout.complete():
            return
        self._last_pass, generation = self.norms.last_pass, self._generation
        self._generation = self.norms.generation
        found = self._estimates(layout, totals)
        if self._now is not None:  # the model may have moved since
            kept = self._now, self._before, self._examples
            self._now, self._before, self._examples = (each.to(found) for each in kept)
        else:
            self._before = self._now = torch.zeros_like(found[:, :3])
            self._examples = torch.zeros_like(found[:, 3])
        # More of the same gradient: nothing was cleared, nor zeroed in place, which the device alone knows.
        goes_on = (found[:, 3] > self._examples).unsqueeze(1) & (generation == self._generation)
        self._before, self._examples = torch.where(goes_on, self._before, self._now), found[:, 3]
        known = found[:, 2:3] > 0
        self._now = torch.where(known, torch.lerp(found[:, :3], self._before, self.smoothing), self._before)

    def batch_size(self) -> float | None:
        """Return the noise scale of the whole model, in examples: its trace over its squared norm, layers summed.

        None where there is no estimate yet, infinite where that of the squared norm is not positive: then the batches
        were too small, or too few, to tell the gradient from its noise.
        """
        return _quotient(self._rows())

    def layers(self) -> dict[str, float | None]:
        """Return the noise scale of each layer by name; see `batch_size`."""
        return {name: _quotient([row]) for name, row in zip(self._names, self._rows())}

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from: by layer, the averages of both terms and their weight."""
        return {"layers": dict(zip(self._names, self._rows()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: it is of other layers.
        """
        rows = state["layers"]
        if rows and list(rows) != self._names:
            missing = sorted(set(self._names) ^ set(rows))[:3]
            raise UserError(f"The state is of other layers: {missing} are in one of the two alone.")
        some = next(iter(self.norms.layers[0].parameters.values()))
        self._now = torch.tensor(list(rows.values()), dtype=wide(some.dtype), device=some.device) if rows else None
        self._before, self._examples = self._now, None if self._now is None else torch.zeros_like(self._now[:, 0])

    def remove(self) -> None:
        """End it; what was found stays readable. A tracker that it has made is taken out of the model."""
        self._removed = True
        if self._own:
            self.norms.remove()

    def _rows(self) -> list[list[float]]:
        """Return for each layer the averages of both terms, and their weight."""
        return [] if self._now is None else self._now.tolist()

    def _present_layout(self) -> Layout:
        """Return where the gradients are: of DeepSpeed, as it was; otherwise as the model's parameters are now."""
        if self._layout is not None and self._layout.steps_in_parts:
            return self._layout
        present = {
            name: layer.module._parameters[local] for layer in self.norms.layers for name, local in _names(layer)
        }
        if self._layout is None or any(self._layout.parameters[name] is not each for name, each in present.items()):
            self._layout = plain_layout(self.model, list(present.items()), self._group)
        return self._layout

    def _estimates(self, layout: Layout, totals: dict[str, Tensor]) -> Tensor:
        """Return for each layer the estimates of both terms, 1 where there are such, and the number of examples."""
        some = next(iter(totals.values()))
        shards = [shard for shard in layout.shards if shard.name in self._number and layout.has_gradient(shard)]
        squares, none = some.new_zeros(len(self._names)), some.new_zeros(4)
        if shards:
            found = squared_norms([layout.gradient(shard) for shard in shards], some.dtype)
            squares.index_add_(0, self._indices([self._number[shard.name] for shard in shards], some), found.to(some))
        own = torch.stack([totals.get(name, none).to(none) for name in self._names])
        squares, whole = layout.whole(squares.unsqueeze(1), own)
        sums, examples, group_squares = whole[:, 1], whole[:, 2], whole[:, 3]
        trace, true_square = estimates(squares[:, 0], sums, examples, group_squares)
        scale = layout.loss_scale() ** 2
        terms = torch.stack([trace / scale, true_square / scale, torch.ones_like(trace)], 1)
        known = (examples**2 - group_squares > ONE_GROUP * examples**2) & terms.isfinite().all(1)
        return torch.cat([torch.where(known.unsqueeze(1), terms, 0.0), examples.unsqueeze(1)], 1)

    def _indices(self, numbers: list[int], like: Tensor) -> Tensor:
        """Return numbers of layers on the device of `like`; sent there only when they change, as that waits for it."""
        if self._layer_of is None or self._layer_of[0] != numbers or self._layer_of[1].device != like.device:
            self._layer_of = numbers, torch.tensor(numbers, device=like.device)
        return self._layer_of[1]


def _names(layer: Layer) -> list[tuple[str, str]]:
    """Return the names of a layer's parameters, in the model and in their module."""
    return [(layer.prefix + local, local) for local in layer.parameters]


def _quotient(rows: list[list[float]]) -> float | None:
    """Return the sum of the traces over that of the squared norms, of layers whose averages have any weight."""
    known = [(trace / weight, true_square / weight) for trace, true_square, weight in rows if weight > 0]
    if not known:
        return None
    trace, true_square = map(sum, zip(*known))
    return trace / true_square if true_square > 0 else float("inf")
