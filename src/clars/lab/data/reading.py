"""What `datasets` raises for data that cannot be read, in words that name them."""

from collections.abc import Iterator
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError, DatasetsError

from clars.errors import DataError, UserError
from clars.lab.recipes import schema

UNREADABLE = (DatasetsError, OSError, ValueError, RuntimeError)


@contextmanager
def reading(where: str, data: schema.Data) -> Iterator[None]:
    """Turn what is raised within into DataError, which names the data set as `where` says."""
    try:
        yield
    except UserError:
        raise
    except UNREADABLE as error:
        # The library's own message says no more than that a file could not be read.
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        raise DataError(f"{where}, data.config={data.config!r}: cannot be read: {reason}") from error
