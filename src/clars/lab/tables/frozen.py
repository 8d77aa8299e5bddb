"""Versions of recipes are frozen from their first published results on."""

import re
from pathlib import Path

from clars.errors import UserError
from clars.lab import digests, shipped, strict_json
from clars.lab.files import write_json
from clars.lab.tables.definition import ResolvedTable

FILE = "frozen.json"


def check(table: ResolvedTable) -> None:
    """Refuse to publish results of a version whose files are not those of its results so far.

    Raises:
        UserError: a file was changed or removed.
    """
    if broken := changed(table.path.parent):
        raise UserError(
            f"{table.path.parent}: {', '.join(broken)} changed since results of {table.version} were published. "
            "Restore it, and make the change in a new version, a copy of the folder."
        )


def check_search(table: ResolvedTable) -> None:
    """Refuse to publish a search whose rates would no longer be those of published runs.

    Raises:
        UserError: runs of the tier are published, or a frozen file was changed.
    """
    shipped.require_own(table.results)
    check(table)
    if any(table.results.glob("**/seed*.json")):
        raise UserError(
            f"{table.results} holds runs, whose rates come from the search before them. Leave out --publish, or make a "
            "new version, a copy of the folder."
        )


def changed(version: Path) -> list[str]:
    """Return the names of frozen files of a version that are no longer as they were, or gone.

    Raises:
        UserError: the list of them is damaged.
    """
    path = _file(version)
    if not path.exists():
        return []
    what, remedy = "list of frozen files with their SHA-256", "Restore it."
    frozen = strict_json.read(path, what, remedy)
    if not isinstance(frozen, dict) or not frozen or not all(map(_is_digest, frozen.values())):
        raise UserError(f"{path} is no {what}. {remedy}")
    now = _hashes(version)
    return [name for name, sha256 in frozen.items() if now.get(name) != sha256]


def freeze(table: ResolvedTable) -> None:
    """Note the SHA-256 of every file of the table's version beside its results, if that was not done before."""
    if not _file(table.path.parent).exists():
        write_json(_file(table.path.parent), _hashes(table.path.parent))


def _file(version: Path) -> Path:
    return version.parent / "results" / version.name / FILE


def _hashes(version: Path) -> dict[str, str]:
    return {path.name: digests.of_file(path) for path in sorted(version.glob("*.yaml"))}


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None
