"""The versions that a person names: by a uid, the beginning of one, NAME@latest or NAME@TIME."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.metadata.records.versions import find_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.model import Version
    from backyfs.repository import Repository


def named_version(repository: Repository, text: str) -> Version:
    """Return the version that a person names, see `backyfs.metadata.records.versions.find_version`.

    Raises:
        VersionNotFoundError: no version matches, or several do.
    """
    return named_versions(repository, (text,))[0]


def named_versions(repository: Repository, texts: Iterable[str]) -> tuple[Version, ...]:
    """Return the versions that a person names, in this order, each once.

    Raises:
        VersionNotFoundError: for one of them, no version matches, or several do.
    """
    with repository.database.read() as connection:
        found = {version.id: version for version in (find_version(connection, text) for text in texts)}
    return tuple(found.values())
