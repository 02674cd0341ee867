"""What backups did: their statistics, which outlive their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import VersionNotFoundError
from backyfs.metadata.records.stats import find_statistics, list_all_statistics, list_statistics
from backyfs.metadata.records.versions import find_version

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection
    from backyfs.model import StatisticsRecord, VersionUid
    from backyfs.repository import Repository

_MIN_PREFIX = 4  # digits of a uid, as for versions that exist


def backup_statistics(
    repository: Repository, version: str | None = None, *, limit: int | None = None
) -> list[StatisticsRecord]:
    """Return the statistics of all backups, or of those of one version, the oldest first; only the newest `limit`.

    Raises:
        VersionNotFoundError: no version and no statistics match `version`, or several do.
        DatabaseError: the database cannot be read.
    """
    with repository.database.read() as connection:
        if version is None:
            return list_all_statistics(connection, limit=limit)
        return list_statistics(connection, _uid_of(connection, version), limit=limit)


def _uid_of(connection: Connection, wanted: str) -> VersionUid:
    """Return the uid of a version that exists, or of one that was removed and still has statistics."""
    try:
        return find_version(connection, wanted).uid
    except VersionNotFoundError:
        found = find_statistics(connection, wanted) if len(wanted) >= _MIN_PREFIX else []
        if len(found) != 1:
            raise
        return found[0]
