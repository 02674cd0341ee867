"""Change what a person decides about a version: protection, date of expiry, tags. Each function is one transaction."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.engine.catalog.publish import catalog_kept
from backyfs.errors import VersionError
from backyfs.metadata.records import versions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Version
    from backyfs.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionReport:
    """The versions that were named, as they were before."""

    protected: bool  # what they are now
    changed: tuple[Version, ...]
    unchanged: tuple[Version, ...]

    @property
    def errors(self) -> list[VersionError]:
        """An error for each version that needed no change."""
        word = "protected" if self.protected else "unprotected"
        return [
            VersionError(f"is already {word}", subject=f"version {version.uid}", remedy="there was nothing to do")
            for version in self.unchanged
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """A version after a change."""

    version: Version
    block_size: int
    without_effect: tuple[str, ...] = ()  # tags that it already had, or did not have


def protect(repository: Repository, names: Sequence[str], *, protected: bool) -> ProtectionReport:
    """Protect versions from being removed, or end their protection.

    Raises:
        VersionNotFoundError: one does not exist; nothing was changed.
    """
    changed: list[Version] = []
    unchanged: list[Version] = []
    with _editing(repository) as connection:
        found = {version.id: version for version in (versions.find_version(connection, name) for name in names)}
        for version in found.values():
            is_new = versions.set_protected(connection, version.id, protected=protected)
            (changed if is_new else unchanged).append(version)
    return ProtectionReport(protected=protected, changed=tuple(changed), unchanged=tuple(unchanged))


def expire(repository: Repository, name: str, expire_at: datetime | None) -> EditReport:
    """Set the date when a version expires; None: never.

    Raises:
        VersionNotFoundError: it does not exist.
    """
    with _editing(repository) as connection:
        version = versions.find_version(connection, name)
        versions.set_expiry(connection, version.id, expire_at)
        return _report(repository, connection, version)


def add_tags(repository: Repository, name: str, tags: Sequence[str]) -> EditReport:
    """Add tags to a version.

    Raises:
        VersionNotFoundError: it does not exist.
    """
    with _editing(repository) as connection:
        version = versions.find_version(connection, name)
        new = versions.add_tags(connection, version.id, tags)
        return _report(repository, connection, version, set(tags) - set(new))


def remove_tags(repository: Repository, name: str, tags: Sequence[str]) -> EditReport:
    """Remove tags from a version.

    Raises:
        VersionNotFoundError: it does not exist.
    """
    with _editing(repository) as connection:
        version = versions.find_version(connection, name)
        versions.remove_tags(connection, version.id, tags)
        return _report(repository, connection, version, set(tags) - version.tag_names)


@contextmanager
def _editing(repository: Repository) -> Iterator[Connection]:
    with catalog_kept(repository), repository.database.write() as connection:
        yield connection


def _report(
    repository: Repository, connection: Connection, version: Version, without_effect: set[str] | None = None
) -> EditReport:
    return EditReport(
        version=versions.find_version(connection, version.uid),
        block_size=repository.block_size,
        without_effect=tuple(sorted(without_effect or ())),
    )
