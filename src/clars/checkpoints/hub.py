"""The Hub: uploading a checkpoint, and its errors in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from clars.errors import CheckpointError

LOGIN = "Log in (`hf auth login`) with a token that may do this, or set HF_TOKEN."


def endpoint() -> str:
    """Return the address of the Hub in use; HF_ENDPOINT moves it."""
    return HfApi().endpoint


def check_repo(repo: str) -> None:
    """Raise CheckpointError unless `repo` is ORG/NAME."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise CheckpointError(f"--repo {repo[:120]!r}: {error}") from None
    if repo.count("/") != 1:
        raise CheckpointError(f"--repo {repo!r}: give ORG/NAME.")


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


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turn what the Hub's client and fsspec raise into one message.

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
    status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)

    def caused(kind: type[Exception]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if caused(OfflineModeIsEnabled):
        return (
            "not on this machine, and HF_HUB_OFFLINE is set. Unset it, or pull the checkpoint where there is network."
        )
    if caused(RevisionNotFoundError):
        return "there is no such revision. Correct the address."
    if caused(GatedRepoError) or status == 403:
        return f"access is refused (403). {LOGIN}"
    if status == 401:
        return f"not there, or not for this user (401). {LOGIN}"
    if caused(RepositoryNotFoundError):
        return f"there is no such repository for this user. Correct the name. {LOGIN}"
    if caused(FileNotFoundError) or status == 404:
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
