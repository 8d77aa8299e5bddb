"""Verifying a checkpoint: its files, and then what it can do."""

from collections.abc import Iterator

from clars.errors import CheckpointError, quoted
from clars.lab.checkpoints import config, pull
from clars.lab.checkpoints.measure import measure, require, splits, tolerance


def verify(name: str, data: bool = True) -> Iterator[str]:
    """Check a checkpoint and yield a line for each thing that holds.

    Args:
        name: of the manifest, or a folder. A folder that is that of a name, by whatever path, has to have its SHA-256.
        data: whether to compare with the recipe's data, and measure the accuracy on them.

    Raises:
        CheckpointError: something does not hold.
        DataError: the data are not in reach.
    """
    found = pull.read(name)
    if found.entry:
        yield f"files: {len(found.files)} with the SHA-256 of the manifest"
    else:
        yield f"files: {len(found.files)} of no name in the manifest, so no SHA-256 says what they must be"
    yield f"weights: {len(found.tensors())} tensors with the names, shapes and types of {found.config.architecture}"
    if not data:
        return
    on = splits(found.recipe)
    config.check_data(found.config, on)
    within = tolerance(on)
    if found.entry and not found.entry.top1.tolerance <= within * (1 + 1e-9):
        raise CheckpointError(
            f"{quoted(name)}: the manifest lets the accuracy differ by {found.entry.top1.tolerance:.2f} points; for "
            f"{len(on.test):,} examples it is {within:.2f}."
        )
    yield "configuration: classes and statistics are those of the data"
    scores = measure(found.recipe, found.network(), on)
    require(scores.top1, found.record.final.top1, within, str(found.path))
    yield (
        f"top-1: {scores.top1:.2f} % of {len(on.test):,} examples here, {found.record.final.top1:.2f} % in the record; "
        f"{within:.2f} points may differ"
    )
