"""List versions: those that match, and what the database can say about them at once."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.metadata.db.database import Database
from backyfs.metadata.db.revisions import SchemaState
from backyfs.metadata.records.versions import list_versions

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.config import Config
    from backyfs.model import Version
    from backyfs.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFilter:
    """Which versions to list; without any condition all of them match."""

    name: str | None = None
    snapshot_name: str | None = None
    tag: str | None = None
    expired_at: datetime | None = None  # only versions that have expired at this time

    def matches(self, version: Version) -> bool:
        """Return whether a version meets every condition."""
        return (
            (self.name is None or version.name == self.name)
            and (self.snapshot_name is None or version.snapshot_name == self.snapshot_name)
            and (self.tag is None or self.tag in version.tag_names)
            and (self.expired_at is None or version.has_expired(self.expired_at))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionList:
    """Versions, ordered by name and date."""

    block_size: int
    versions: tuple[Version, ...]
    encryption: tuple[dict[int, int], ...] | None  # of each: blocks by encryption version; None: not counted


def matching_versions(
    repository: Repository, wanted: VersionFilter, *, count_encryption: bool = False
) -> VersionList:
    """Return the versions that match. `count_encryption` reads all of their block maps.

    Raises:
        DatabaseError: the database cannot be read.
    """
    with repository.database.read() as connection:
        found = tuple(
            version for version in list_versions(connection, name=wanted.name) if wanted.matches(version)
        )
    encryption = None
    if count_encryption:
        from backyfs.metadata.maps.usage import (  # noqa: PLC0415 - nothing else here reads block maps
            encryption_of_blocks,
        )

        with repository.database.read() as connection:
            encryption = tuple(encryption_of_blocks(connection, found))
    return VersionList(block_size=repository.block_size, versions=found, encryption=encryption)


def versions_without_key(config: Config) -> list[Version]:
    """Return all versions without opening the repository; none if its database must be upgraded first.

    Raises:
        DatabaseError: the database cannot be read.
    """
    with closing(Database(config.database_url)) as database:
        if database.schema().state is not SchemaState.CURRENT:
            return []
        with database.read() as connection:
            return list_versions(connection)
