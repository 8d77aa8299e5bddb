"""From the folder of a run to a checkpoint that anyone can load."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clars.errors import CheckpointError
from clars.lab import models, runs, shipped
from clars.lab.checkpoints import card, config, folder, form, hub, manifest, reading, weights
from clars.lab.checkpoints.manifest import Accuracy, Entry
from clars.lab.checkpoints.measure import measure, require, splits, tolerance
from clars.lab.recipes import registry
from clars.lab.recipes.load import Resolved, load
from clars.lab.runs import layout
from clars.lab.runs.consistency import mismatch
from clars.lab.runs.record import Record
from clars.lab.tables.summary import interval

IN_GIT = 1_200_000  # bytes of weights, room for a ResNet-20; larger ones go to the Hub, only their description stays


@dataclass(frozen=True)
class PublishOptions:
    """How to publish.

    Args:
        repo: `ORG/NAME` of the Hub to upload to; None to keep the files beside the manifest.
        allow_dirty: take runs of a tree with changes, or outside of git.
        replace: take the place of a checkpoint of the same name.
        dry_run: check all, say what would be done, and write nothing.
        in_git: bytes of weights that may stay beside the manifest.
        tell: is called with each line about what will be done.
    """

    repo: str | None = None
    allow_dirty: bool = False
    replace: bool = False
    dry_run: bool = False
    in_git: int = IN_GIT
    tell: Callable[[str], None] = field(default=print)


def publish(run: Path, name: str | None = None, options: PublishOptions = PublishOptions()) -> Entry:
    """Publish the run in a folder as a checkpoint, whole or not at all; return its entry of the manifest.

    Raises:
        CheckpointError: the run is none to be published, or its weights do not reach the recorded accuracy.
        DataError: the data of the recipe are not in reach.
    """
    record = _record(run / layout.RECORD)
    resolved = _recipe(record, run, options.allow_dirty)
    name = manifest.check_name(name or _default_name(resolved))
    target = manifest.root() / name
    shipped.require_own(target)
    if name in manifest.load().checkpoints and not options.replace:
        raise CheckpointError(f"{name} is published already. Choose another --name, or --replace it.")
    if options.repo:
        hub.check_repo(options.repo)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        entry = _stage(run, record, resolved, name, staged, options.repo)
        size = entry.files[form.WEIGHTS].bytes
        if size > options.in_git and not options.repo:
            raise CheckpointError(
                f"{run / form.WEIGHTS}: {size:,} bytes are too many for git ({options.in_git:,}). Upload them: --repo "
                "ORG/NAME."
            )
        for line in _plan(name, entry, target, options):
            options.tell(line)
        if options.dry_run:
            options.tell("nothing is written: --dry-run")
            return entry
        if options.repo:
            address = hub.upload(staged, options.repo, f"{name}: {entry.recipe}@{entry.version} seed {entry.seed}")
            entry = entry.model_copy(update={"address": address})
        _place(staged, target, form.FILES if size <= options.in_git else form.FILES[1:])
        options.tell(f"wrote {manifest.add(name, entry)}")
        return entry


def push(run: Path, repo: str, *, allow_dirty: bool = False) -> str:
    """Upload the run in a folder as a checkpoint to the Hub, without an entry of a manifest; return its address.

    Raises:
        CheckpointError: as `publish`, or the Hub refuses.
        DataError: the data of the recipe are not in reach.
    """
    hub.check_repo(repo)
    record = _record(run / layout.RECORD)
    resolved = _recipe(record, run, allow_dirty)
    with tempfile.TemporaryDirectory() as temporary:
        entry = _stage(run, record, resolved, repo.partition("/")[2], Path(temporary), repo)
        return hub.upload(Path(temporary), repo, f"{entry.recipe}@{entry.version} seed {entry.seed}")


def _record(path: Path) -> Record:
    """Return the record of a run that has a result, or refuse the run."""
    reading.value(folder.content(path), path)  # before another reader waits for a pipe, or takes the last of two keys
    record = Record.read(path)
    form.require_result(record, path)
    return record


def _recipe(record: Record, run: Path, allow_dirty: bool) -> Resolved:
    """Return the recipe of a run, or refuse the run."""
    if record.version == registry.UNVERSIONED:
        raise CheckpointError(
            f"{run} is of {record.recipe}, a file outside recipes/FOLDER/vN. Move the recipe there and run it again."
        )
    if record.git.dirty is not False and not allow_dirty:
        found = "outside of git" if record.git.commit is None else "from a tree with changes"
        raise CheckpointError(
            f"{run} was made {found}, so no commit tells what ran. Run it from a commit, or say --allow-dirty."
        )
    resolved = load(f"{record.recipe}@{record.version}", record.overrides)
    if resolved.recipe.self_supervised is not None:
        raise CheckpointError(
            f"{run} was trained without labels, so it has no classifier to publish. Its {form.WEIGHTS} is what"
            " model.pretrained begins with."
        )
    if record.recipe_sha256 != resolved.sha256:
        raise CheckpointError(f"{run}: {resolved.path} has changed since. Restore it, or run the recipe as it is now.")
    runs.require_whole(run, resolved)
    return resolved


def _stage(run: Path, record: Record, resolved: Resolved, name: str, staged: Path, repo: str | None) -> Entry:
    """Write all files into `staged`, after measuring what they hold."""
    recipe, on = resolved.recipe, splits(resolved.recipe)
    network = models.create(recipe.model, on.num_classes, recipe.data.channels, recipe.data.image_size)
    content = weights.content(run / form.WEIGHTS, network.state_dict())
    network.load_state_dict(weights.load(content, run / form.WEIGHTS))
    require(measure(recipe, network, on).top1, record.final.top1, tolerance(on), str(run))
    whole = record.model_copy(update={"settings": recipe.model_dump(mode="json")})
    form.write(staged, config.describe(recipe, network, on), recipe, whole, content)
    entry = _entry(run, whole, resolved, tolerance(on))
    (staged / form.CARD).write_text(card.write(name, entry, whole, recipe, on, repo), encoding="utf-8")
    found = form.read(staged)
    return entry.model_copy(update={"files": {file: manifest.describe(found.files[file]) for file in form.FILES}})


def _entry(run: Path, record: Record, resolved: Resolved, within: float) -> Entry:
    values = seeds(run, record, resolved)
    facts = manifest.facts(record, resolved.recipe)
    top1 = Accuracy(
        **facts.pop("top1"),
        tolerance=within,
        n=len(values),
        mean=sum(values.values()) / len(values),
        half_width=interval(list(values.values())),
    )
    # It is checked when the manifest is written, with its files.
    return Entry.model_construct(**facts, top1=top1, files={}, address=None)


def seeds(run: Path, record: Record, resolved: Resolved) -> dict[int, float]:
    """Return the final top-1 of each seed that finished with the run's settings.

    Of one seed, the record that is published with the recipe counts before a run, on whatever machine, beside this one.
    """
    found: dict[int, float] = {}
    evidence = registry.root() / record.recipe.partition("/")[0] / "results"
    places = sorted({path.parent for path in evidence.rglob("seed*.json")})
    for place in [*places, run.absolute().parent]:
        for other in runs.read(place.parent, place.name):
            if other.record.status == "finished" and not mismatch(other.record, resolved):
                found.setdefault(other.record.seed, other.record.final.top1)
    found.setdefault(record.seed, record.final.top1)
    return found


def _default_name(resolved: Resolved) -> str:
    recipe = resolved.recipe
    parts = recipe.data.name.rpartition("/")[2], config.architecture(recipe), recipe.optimizer.name
    return "-".join(part.lower().replace("_", "-") for part in parts)


def _plan(name: str, entry: Entry, target: Path, options: PublishOptions) -> list[str]:
    top1, total = entry.top1, sum(file.bytes for file in entry.files.values())
    lines = [
        f"{name}: {entry.architecture} of {entry.recipe}@{entry.version}, seed {entry.seed}",
        f"  top-1 {top1.value:.2f} % ({top1.split} split of {top1.data}), measured again within {top1.tolerance:.2f}",
    ]
    if options.repo:
        lines.append(
            f"  will create {options.repo} on {hub.endpoint()} unless it is there, and upload {total:,} bytes to it:"
        )
        lines += [f"    {file} {what.bytes:,} bytes" for file, what in entry.files.items()]
    kept = len(form.FILES) - (entry.files[form.WEIGHTS].bytes > options.in_git)
    return [*lines, f"  will write {kept} files into {target} and its entry into {manifest.root() / manifest.FILE}"]


def _place(staged: Path, target: Path, files: tuple[str, ...]) -> None:
    """Move the files to where they stay, by way of a folder beside it, so that none is ever half there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        for name in files:
            shutil.copyfile(staged / name, new / name)
        if target.exists():
            target.rename(old)
        new.rename(target)
