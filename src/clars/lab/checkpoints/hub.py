"""The Hub: where a file lies there, uploading a checkpoint, and what goes wrong in words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import (
    CommitOperationAdd,
    HfApi,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from clars.errors import CheckpointError, quoted
from clars.lab.checkpoints.folder import FILES
from clars.lab.checkpoints.http import Refused, reason

PROBE_SECONDS = 10
ADDRESS = r"hf://(?:(model|dataset|space)s/)?([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)"


def endpoint() -> str:
    """Return the address of the Hub in use; HF_ENDPOINT moves it."""
    return HfApi().endpoint


def check_repo(repo: str) -> None:
    """Raise CheckpointError unless `repo` is ORG/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise CheckpointError(f"--repo {quoted(repo)}: {error}") from None
    if repo.count("/") != 1:
        raise CheckpointError(f"--repo {quoted(repo)}: give ORG/NAME.")


def upload(folder: Path, repo: str, message: str) -> str:
    """Create the repository unless it is there, add the files of a folder in one commit, and return their address.

    The weights go before the commit, and the Hub keeps them: after an interruption the same call does not send what
    has arrived. The address names the commit, so it means these files for ever.

    Raises:
        CheckpointError: the Hub refuses, or cannot be reached.
    """
    api = HfApi(library_name="clars")
    files = sorted(folder.iterdir())
    with explained(f"{repo} on {endpoint()}", "The same command goes on."):
        api.create_repo(repo, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files]
        commit = api.create_commit(repo, additions, commit_message=message)
    return f"hf://{repo}@{commit.oid}"


def fetch(address: str, target: Path, size: int) -> None:
    """Put the file `hf://ORG/NAME[@REVISION]/PATH` where `target` says, by the Hub's own client.

    The client goes on by itself where a connection breaks; where it gives up, nothing is kept.

    Raises:
        Refused: it is no such address, or another file lies there than one of `size` bytes.
    """
    parts = re.fullmatch(ADDRESS, address)
    if not parts:
        raise Refused("the address of a folder on the Hub is hf://ORG/NAME@REVISION. Correct it.")
    kind, repo, revision, file = parts.groups()
    named = {"repo_type": kind, "revision": unquote(revision) if revision else None, "library_name": "clars"}
    there = get_hf_file_metadata(hf_hub_url(repo, file, repo_type=kind, revision=named["revision"]))
    if there.size != size:
        raise Refused(f"it has {there.size} bytes, and {size} were published: it is another file. Correct the address.")
    kept = target.parent / file
    hf_hub_download(repo, file, local_dir=target.parent, **named)
    kept.replace(target)


def snapshot(name: str) -> Path:
    """Return the folder of a checkpoint `ORG/NAME[@REVISION]`, in the cache of the Hub's client.

    Without network it is what was downloaded last.

    Raises:
        CheckpointError: there is no such repository, or it cannot be reached and was never downloaded.
    """
    repo, _, revision = name.partition("@")
    with explained(f"{name} on {endpoint()}", "Check the connection, and say the same again."):
        try:
            commit = HfApi(library_name="clars").model_info(repo, revision=revision or None, timeout=PROBE_SECONDS).sha
        except (HfHubHTTPError, RepositoryNotFoundError):
            raise
        except Exception:  # of whichever HTTP library is behind the client: there is no network
            try:
                return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
            except LocalEntryNotFoundError:
                pass
            raise
        return Path(snapshot_download(repo, revision=commit, allow_patterns=list(FILES), library_name="clars"))


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn what the Hub's client, a server and fsspec raise into one message.

    Args:
        what: was to be reached.
        remedy: what to do when the network fails.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # of whichever HTTP library is behind the client, or of a store's own
        raise CheckpointError(f"{what}: {_reason(error, remedy)}") from error


def _reason(error: Exception, remedy: str) -> str:
    causes = _causes(error)
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return (
            "not on this machine, and HF_HUB_OFFLINE is set. Unset it, or pull the checkpoint where there is network."
        )
    if isinstance(error, Refused):
        return str(error)
    refused = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if refused and (why := reason(refused.response.status_code, refused.response.headers.get("X-Error-Code"))):
        return why
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return f"not found ({_first_line(error)}). Correct the address."
    return f"{_first_line(error) or type(error).__name__}. {remedy}"


def _causes(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
