"""Whether a run's record agrees with itself, with the lines and files beside it, and with its recipe.

What a record says twice must be the same both times. None of this needs a digest, so it holds for old records too.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from clars.errors import UserError, quoted, shortened
from clars.lab.recipes.load import Resolved
from clars.lab.recipes.schema import Optimizer, Recipe, Schedule
from clars.lab.runs.layout import seed_of
from clars.lab.runs.record import REMEDY, Record, Run

MOST_PATHS = 600  # characters of a message that name runs
_ACCURACIES = ("top1", "top5")


def check(record: Record, metrics: list[dict], path: Path) -> None:
    """Check a record against its lines of metrics and the name of its file.

    Args:
        record: the record.
        metrics: its lines, one an epoch.
        path: its file, seed<k>.json or seed<k>/run.json; other names say nothing.

    Raises:
        UserError: they contradict each other.
    """
    problem = next(_contradictions(record, metrics, path), None)
    if problem:
        raise UserError(f"{path} contradicts itself: {problem}. {REMEDY}")


def agree(record: Record, resolved: Resolved, path: Path) -> None:
    """Check that a record of a recipe says what the recipe says.

    Raises:
        UserError: it does not.
    """
    problem = next(_against_recipe(record, resolved), None)
    if problem:
        raise UserError(f"{path} contradicts its recipe {resolved.path}: {problem}. {REMEDY}")


def mismatch(record: Record, resolved: Resolved) -> str | None:
    """Say why a record is none of `resolved`: another recipe, another content of its file, other overrides."""
    if (record.recipe, record.version) != (resolved.name, resolved.version):
        return f"it is a run of {record.recipe}@{record.version}"
    if record.recipe_sha256 != resolved.sha256:
        return f"{resolved.path} has changed since"
    if sorted(record.overrides) != sorted(resolved.overrides):
        return f"it was run with the overrides {' '.join(record.overrides) or '(none)'}"
    return None


def require_comparable(found: Sequence[Run]) -> None:
    """Check that runs whose numbers stand beside each other are of one precision, and of one stated protocol.

    Raises:
        UserError: they did not; names the runs of each.
    """
    _require_one("mixed precision", "one --mixed-precision, by", [(run.record.precision, run) for run in found])
    stated = [(str(run.record.protocol), run) for run in found if run.record.protocol is not None]
    _require_one("protocol", "this version of clars, by", stated)


def _require_one(what: str, how: str, found: Iterable[tuple[str, Run]]) -> None:
    paths: dict[str, list[str]] = {}
    for value, run in found:
        paths.setdefault(value, []).append(str(run.path))
    if len(paths) > 1:
        listed = "; ".join(f"{name} in {shortened(', '.join(own), MOST_PATHS)}" for name, own in sorted(paths.items()))
        raise UserError(
            f"Runs that are compared have to be of one {what}, and here it is {listed}. Remove those of all but one, or"
            f" make all anew with {how} --overwrite or in another --out."
        )


def _contradictions(record: Record, metrics: list[dict], path: Path) -> Iterator[str]:
    named = seed_of(path)
    if named is not None and named != record.seed:
        yield f"seed is {record.seed}, by the name of the file it is {named}"
    parts = record.micro_batch_size, record.accumulation, record.world_size
    if record.global_batch_size != parts[0] * parts[1] * parts[2]:
        yield f"global_batch_size is {record.global_batch_size}, not {' x '.join(map(str, parts))}"
    if record.final.top5 is not None and (record.final.top1 is None or record.final.top1 > record.final.top5):
        yield f"final.top1 is {record.final.top1}, more than final.top5 = {record.final.top5}"
    yield from _wrong_lines(metrics)
    if record.status == "interrupted":
        return
    if len(metrics) != record.epochs:
        yield f"it has {record.epochs} epochs, and {len(metrics)} lines of metrics"
    if record.epochs:
        yield from _wrong_best(record, metrics)
    if record.status == "finished":
        yield from _wrong_end(record, metrics)


def _wrong_lines(metrics: list[dict]) -> Iterator[str]:
    """Yield what is wrong with lines by themselves: one for each epoch, in order, after equally many steps each."""
    for number, line in enumerate(metrics, start=1):
        if line.get("epoch") != number:
            yield f"line {number} of the metrics is of epoch {quoted(line.get('epoch'))}"
        first, step = metrics[0].get("step"), line.get("step")
        if type(first) is not int or first < 1 or step != number * first:
            yield f"epoch {number} ends after step {quoted(step)}, the first after {quoted(first)}"
        for key in _ACCURACIES:
            value = line.get(key)
            if value is not None and (type(value) not in (int, float) or not 0 <= value <= 100):
                yield f"{key} of epoch {number} is {quoted(value)}, which is no percentage"


def _wrong_best(record: Record, metrics: list[dict]) -> Iterator[str]:
    accuracies = {number: line.get("top1") for number, line in enumerate(metrics, start=1)}
    missing = [number for number in _evaluated(record, metrics) if accuracies[number] is None]
    measured = {number: value for number, value in accuracies.items() if value is not None}
    highest = max(measured, key=measured.get, default=None)  # the first of equals
    if missing:
        yield f"epoch {missing[0]} has no top1"
    elif highest is None:
        if record.best is not None:
            yield f"best.top1 is {record.best.top1}, the metrics have none"
    elif record.best is None or record.best.top1 != measured[highest]:
        yield f"best.top1 is {record.best and record.best.top1}, the highest of the metrics is {measured[highest]}"
    elif record.best.epoch != highest:
        yield f"best.epoch is {record.best.epoch}, by the metrics it is {highest}"


def _evaluated(record: Record, metrics: list[dict]) -> Iterable[int]:
    """Return the epochs after which a run measured by its own settings; the end is another matter."""
    evaluation = (record.settings or {}).get("evaluation")
    every = evaluation.get("every", 1) if isinstance(evaluation, dict) else 1
    return range(every, len(metrics) + 1, every) if type(every) is int and every > 0 else ()


def _wrong_end(record: Record, metrics: list[dict]) -> Iterator[str]:
    """Yield where a run that finished says something else at its end than its last line does."""
    if not metrics:
        yield "it finished without an epoch"
        return
    last, final = metrics[-1], record.final
    if last["step"] != record.steps:
        yield f"it has {record.steps} steps, and its last epoch ends after step {last['step']}"
    stated = {"top1": final.top1, "top5": final.top5, "val_loss": final.loss}
    for key, value in stated.items():
        if (key in last and last[key] != value) or (value is None and key != "top5"):
            yield f"final.{key.removeprefix('val_')} is {value}, {key} of the last epoch {quoted(last.get(key))}"


def _against_recipe(record: Record, resolved: Resolved) -> Iterator[str]:
    recipe = resolved.recipe
    if record.global_batch_size != recipe.batch_size:
        yield f"global_batch_size is {record.global_batch_size}, the recipe has {recipe.batch_size}"
    if record.epochs > recipe.epochs or (record.status == "finished" and record.epochs != recipe.epochs):
        yield f"it has {record.epochs} epochs, the recipe {recipe.epochs}"
    if record.weights != ("ema" if recipe.ema else "last"):
        yield f"weights are {record.weights}, the recipe has {'an' if recipe.ema else 'no'} ema"
    if recipe.mixed_precision not in (None, record.precision):
        yield f"mixed_precision is {record.precision}, the recipe has precision {recipe.precision}"
    schedule = dict(record.schedule)
    if schedule.pop("peak_rate", None) != resolved.peak_rate:
        yield f"schedule.peak_rate is {quoted(record.schedule.get('peak_rate'))}, by the recipe {resolved.peak_rate:g}"
    sections = {"optimizer": (Optimizer, record.optimizer, recipe.optimizer)}
    sections["schedule"] = (Schedule, schedule, recipe.schedule)
    if record.settings is not None:
        sections["settings"] = (Recipe, record.settings, recipe)
    for name, (schema, stated, wanted) in sections.items():
        try:  # keys that an older version did not have yet take their defaults
            differing = [key for key, value in schema.model_validate(stated) if value != getattr(wanted, key)]
        except ValidationError as error:
            differing = [".".join(map(str, error.errors()[0]["loc"]))]
        if differing:
            key = differing[0]
            yield f"{name}.{key} is {quoted(stated.get(key))}, by the recipe it is {quoted(getattr(wanted, key, None))}"
