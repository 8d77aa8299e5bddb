"""Verifying a checkpoint: its files, and then what it can do."""

from collections.abc import Iterator

from clars.checkpoints import form, manifest, pull
from clars.checkpoints.measure import measure, require, splits, tolerance
from clars.errors import CheckpointError


def verify(name: str, data: bool = True) -> Iterator[str]:
    """Check a checkpoint and yield a line for each thing that holds.

    Args:
        name: of the manifest, or a folder. A folder has no SHA-256 to be compared with, unless it is that of a name.
        data: whether to measure the accuracy on the recipe's data too.

    Raises:
        CheckpointError: something does not hold.
        DataError: the data are not in reach.
    """
    folder = pull.find(name)
    entry = manifest.load().checkpoints.get(folder.name if folder.parent == manifest.root() else str(name))
    if entry:
        manifest.check_files(folder, entry)
        yield f"files: {len(entry.files)} with the SHA-256 of the manifest"
    found = form.read(folder)
    tensors = len(form.architecture(found.recipe, found.config.num_classes).state_dict())
    yield f"weights: {tensors} tensors with the names, shapes and types of {found.config.architecture}"
    if not data:
        return
    on = splits(found.recipe)
    if on.num_classes != found.config.num_classes:
        raise CheckpointError(f"{folder} has {found.config.num_classes} classes, its data {on.num_classes}.")
    within = entry.top1.tolerance if entry else tolerance(on)
    scores = measure(found.recipe, found.network(), on)
    require(scores.top1, found.record.final.top1, within, str(folder))
    yield (
        f"top-1: {scores.top1:.2f} % of {len(on.test):,} examples here, {found.record.final.top1:.2f} % in the record; "
        f"{within:.2f} points may differ"
    )
