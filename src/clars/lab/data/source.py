"""Where image data sets come from: a local folder, the cache of earlier downloads, the Hub."""

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import datasets
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

from clars.errors import DataError
from clars.lab.data import local, resolved
from clars.lab.data.columns import Openers, Split
from clars.lab.data.reading import reading
from clars.lab.recipes import schema

PROBE_SECONDS = 10


def open_splits(data: schema.Data) -> Openers:
    """Return what opens each split of a data set: of `data.path` if given, else from the cache, else from the Hub.

    A data set in the cache is used as it is, without asking the Hub for a newer version. With `data.streaming`, the
    splits are streams, and the cache is left aside.
    Raises DataError if it cannot be reached or read.
    """
    if data.path:
        return _local(data)
    if not data.streaming:
        with suppress(ValueError, OSError):
            return _openers(_cached(data).as_dataset())
    _require_hub(data)
    return _resolved(data, f"data.name={data.name!r}", data.name, data.config)


def reachable(data: schema.Data) -> tuple[bool, str]:
    """Say whether the folder or the download is on this machine, and where it is or what to do about it."""
    if data.path:
        found = Path(data.path).expanduser().is_dir()
        return found, f"folder {data.path}" if found else f"data.path={data.path!r} is not a folder"
    try:
        return True, f"in the cache: {_cached(data).cache_dir}"
    except (ValueError, OSError):
        return (
            False,
            f"not on this machine; downloaded from the Hub when used. Without network: {_advice(data)}",
        )


def _cached(data: schema.Data) -> Cache:
    """Find an earlier download. Raises ValueError or OSError for none, or several and no `data.config`."""
    name = data.name.rpartition("/")[2]
    return Cache(repo_id=data.name, dataset_name=name, config_name=data.config, version="auto", hash="auto")


def _local(data: schema.Data) -> Openers:
    where, folder = f"data.path={data.path!r}", Path(data.path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{where} is not a folder: {_advice(data)}")
    with reading(where, data):
        configs = resolved.declared(folder)
    if configs:
        # A card may name its only configuration otherwise than the recipe does.
        return _resolved(data, where, str(folder), data.config if len(configs) > 1 else None)
    own = folder / (data.config or "")
    found = local.open_splits(own if own.is_dir() else folder, data)
    if not found:
        raise DataError(f"{where} holds no data set: {_advice(data)}")
    return found


def _require_hub(data: schema.Data) -> None:
    """Ask for the data set once: without network `load_dataset` would keep trying for half a minute."""
    try:
        HfApi().dataset_info(data.name, timeout=PROBE_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(
            f"data.name={data.name!r} is no data set that the Hub shows to this user ({_first_line(error)})."
            f" Correct the name, log in if it is restricted, or {_advice(data)}"
        ) from error
    # The HTTP library behind the Hub's client, and so the exception, differs between its versions.
    except Exception as error:
        raise DataError(
            f"data.name={data.name!r} is not on this machine and the Hub cannot be reached"
            f" ({_first_line(error)}). To work offline, {_advice(data)}"
        ) from error


def _resolved(data: schema.Data, where: str, path: str, config: str | None) -> Openers:
    """Open what `datasets` finds in a folder with a card, or on the Hub, after a look at what it has found."""
    with reading(where, data):
        builder = datasets.load_dataset_builder(path, config)
        resolved.check(builder, where, data)
        if data.streaming:
            return _openers(builder.as_streaming_dataset())
        builder.download_and_prepare()
        return _openers(builder.as_dataset())


def _openers(splits: Mapping[str, Split]) -> Openers:
    return {str(name): partial(splits.__getitem__, name) for name in splits}


def _advice(data: schema.Data) -> str:
    return (
        f"place a copy in a folder, as parquet files or images with the splits {data.train_split!r} and"
        f" {data.test_split!r} and the columns {data.image_column!r} and {data.label_column!r}"
        " (data/train-00000-of-00001.parquet, or train/CLASS/NAME.png), and pass data.path=DIR."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
