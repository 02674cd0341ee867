"""Back up a source: read, hash, look up, and store what the repository does not have yet.

The calling thread owns database, block map and counters; worker threads read and hash runs of blocks, seal
and store those that are new, and flush the storage. Each block's bytes stay in one of a fixed number of
buffers until they are stored or found, so memory does not depend on the image.

Order of things, on which safety rests: an object is durable before its blob has a row; a blob has a row
before a page names it; all pages are there before the version is valid.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.engine.job import Job
from backyfs.engine.pipeline import Pipeline
from backyfs.errors import UsageError
from backyfs.geometry import block_count
from backyfs.metadata.stats import BackupStatistics, insert_statistics
from backyfs.metadata.versions import create_version, set_status
from backyfs.model import NAME_LENGTH, NoProgress, Version, VersionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Progress
    from backyfs.repository import Repository
    from backyfs.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """What to back up as what."""

    name: str
    snapshot_name: str = ""
    tags: Sequence[str] = ()
    expire_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup did."""

    version: Version
    statistics: BackupStatistics
    duration_s: float


def backup(
    repository: Repository,
    source: Source,
    request: BackupRequest,
    *,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    announce: Callable[[Version], None] | None = None,
) -> BackupReport:
    """Back up `source` as a new version.

    `stop` is asked often; once it returns True the backup ends soon, and what was stored stays usable by
    the next one. `announce` is told the version as soon as it is there.

    Raises:
        UsageError: a name cannot be stored.
        InterruptedByUser: `stop` said so; the version stays incomplete.
        SourceError: the source cannot be read; the version stays incomplete.
        StorageError, DatabaseError: likewise.
        JobLostError: another command took this one for dead.
    """
    _check_text("the name", request.name, least=1)
    _check_text("the snapshot name", request.snapshot_name, least=0)
    started = time.monotonic()
    progress = progress or NoProgress()
    statistics = BackupStatistics()
    with Job(repository.database, f"backup {request.name}") as job:
        with repository.database.write() as connection:
            version = create_version(
                connection,
                name=request.name,
                snapshot_name=request.snapshot_name,
                size_bytes=source.size_bytes,
                created_at=datetime.now(UTC),
                tag_names=request.tags,
                expire_at=request.expire_at,
            )
        job.hold(version.id)
        if announce is not None:
            announce(version)
        progress.start(f"Backing up {request.name}", source.size_bytes)
        try:
            pipeline = Pipeline(repository, source, version, job, statistics, progress, stop)
            pipeline.run()
        finally:
            progress.stop()
        duration_s = time.monotonic() - started
        return _finish(repository, version, statistics, duration_s)


def _check_text(what: str, text: str, *, least: int) -> None:
    if not least <= len(text) <= NAME_LENGTH:
        raise UsageError(f"{what} of a version has {len(text)} characters; allowed are {least} to {NAME_LENGTH}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} of a version is {text!r}, which is not UTF-8; write it in UTF-8") from None


def _finish(
    repository: Repository, version: Version, statistics: BackupStatistics, duration_s: float
) -> BackupReport:
    with repository.database.write() as connection:
        set_status(connection, version.id, VersionStatus.VALID)
        insert_statistics(
            connection,
            version,
            block_count(version.size_bytes, repository.block_size),
            statistics,
            ended_at=datetime.now(UTC),
            duration_s=duration_s,
        )
    finished = replace(version, status=VersionStatus.VALID)
    return BackupReport(version=finished, statistics=statistics, duration_s=duration_s)
