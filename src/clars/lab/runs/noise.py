"""The gradient noise scale over a run, as training notes it in `noise.jsonl`."""

import json
from dataclasses import dataclass

from pydantic import ConfigDict, NonNegativeFloat, PositiveInt, TypeAdapter, ValidationError

from clars.errors import UserError
from clars.lab.runs import layout, metrics
from clars.lab.runs.find import require_file
from clars.lab.runs.record import REMEDY, Run, first_problem


@dataclass(frozen=True)
class NoiseLine:
    """The noise scale after a step, in examples: of the whole network, and by layer. None: unknown, or infinite."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    step: PositiveInt
    noise_scale: NonNegativeFloat | None
    layers: dict[str, NonNegativeFloat | None]


def read(run: Run) -> list[NoiseLine]:
    """Return the lines beside a run's record, in order of their steps; at least one.

    Raises:
        UserError: the run did not measure it, or the file cannot be understood, or is not the one that the run wrote.
    """
    path, stated = run.path.with_name(layout.NOISE), run.record.digests
    if stated is None or stated.noise is None:
        raise UserError(
            f"{run.path.parent} has no {layout.NOISE}: the run was trained without --noise-scale, or ended before the "
            "first line. Train it anew by --overwrite, or into another --out."
        )
    require_file(run.record, "noise", path)
    try:
        found = TypeAdapter(list[NoiseLine]).validate_json(json.dumps(metrics.read_lines(path)), strict=True)
    except ValidationError as error:
        raise UserError(f"{path} holds no noise scales: {first_problem(error)}. {REMEDY}") from None
    steps = [line.step for line in found]
    if not found or steps != sorted(set(steps)):
        raise UserError(f"{path} holds no noise scales in the order of their steps. {REMEDY}")
    return found
