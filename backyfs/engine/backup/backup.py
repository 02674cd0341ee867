"""Back up a source: read, hash and look up its blocks, and store those that the repository does not have yet.

The calling thread owns database, block map and counters. Worker threads read and hash runs of blocks, seal and store
new ones, and flush the storage. The bytes of a block stay in one of a fixed number of buffers until the block is stored
or found, so memory does not depend on the size of the image.

Safety depends on this order: an object is durable before its blob has a row; a blob has a row before a page refers to
it; all pages are committed before the version is valid. An interrupted version has committed pages, whose absent
entries are what is left to do.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.engine.backup.inherited import InheritedMap, damaged_blocks
from backyfs.engine.backup.pipeline import Pipeline
from backyfs.engine.backup.plan import plan_backup, plan_everything
from backyfs.engine.backup.sampling import Sampling
from backyfs.engine.backup.watch import Watch
from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.damage.marking import revive_repaired_versions
from backyfs.errors import UsageError, VersionError, VersionIncompleteError, VersionNotFoundError
from backyfs.geometry import block_count
from backyfs.metadata.maps.blockmap import forget_holes
from backyfs.metadata.records.stats import insert_statistics
from backyfs.metadata.records.versions import (
    add_tags,
    create_version,
    list_versions,
    set_expiry,
    set_status,
    version_with_uid,
)
from backyfs.metadata.upkeep.checks import has_damage
from backyfs.model import NAME_LENGTH, JobKind, JobSpec, Version, VersionStatus
from backyfs.ranges import Ranges
from backyfs.remedies import Advice
from backyfs.retention import automatic_tags, due_tags
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backyfs.config import Scheduler
    from backyfs.engine.backup.plan import Plan
    from backyfs.hints import Hints
    from backyfs.metadata.db.database import Connection
    from backyfs.metadata.records.stats import BackupStatistics
    from backyfs.model import VersionUid
    from backyfs.repository import Repository
    from backyfs.sources.change import SourceWarning
    from backyfs.sources.protocol import Source
    from backyfs.work.run import Control

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupRequest:
    """What to back up under which name, and what is known about it in advance."""

    name: str
    snapshot_name: str = ""
    tags: Sequence[str] | None = ()   # None: those of `retention.automatic_tags`
    schedulers: Sequence[Scheduler] = ()  # a new version also gets the tags of those due
    expire_at: datetime | None = None
    hints: Hints | None = None        # None: read everything
    base: Version | None = None       # has the blocks without hints; None: these are zeros
    continued: Version | None = None  # an incomplete version to continue


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupReport:
    """What a backup did."""

    version: Version
    statistics: BackupStatistics
    duration_s: float
    blobs_repaired: int = 0  # damaged blobs whose bytes the source has: stored again
    versions_valid: tuple[VersionUid, ...] = ()  # other versions, invalid until now
    warnings: tuple[SourceWarning, ...] = ()     # signs that the source changed while it was read


def backup(
    repository: Repository,
    source: Source | Callable[[], Source],
    request: BackupRequest,
    *,
    control: Control = UNATTENDED,
    announce: Callable[[Version], None] | None = None,
) -> BackupReport:
    """Back up `source` as a new version, or continue an interrupted one.

    `source` may also be a function that opens it. Then a source that cannot be opened is recorded as a failed run, and
    the source is closed at the end. If `control` asks to stop, the backup ends soon, and what was stored stays usable
    by the next one. `announce` is called with the version as soon as it exists.

    Raises:
        UsageError: a name cannot be stored, or the version to continue is of another image.
        HintsError: the hints do not fit source and base; no version was created.
        VersionError: the base is gone or not valid, or the version to continue is in use or not incomplete.
        InterruptedByUser: `control` asked to stop; the version stays incomplete.
        SourceError: the source cannot be read, shrank or grew; the version stays incomplete.
        StorageError, DatabaseError: likewise.
        JobLostError: another command considered this one dead.
    """
    _check_text("the name", request.name, least=1)
    _check_text("the snapshot name", request.snapshot_name, least=0)
    started = time.monotonic()
    with catalog_kept(repository, control), _job(repository, request) as job, _opened(source) as image:
        if request.base is not None:
            _hold_base(repository, job, request.base)
        watch = Watch(image, None if request.continued is None else request.continued.created_at)
        plan = _plan(repository, image, request)
        version = _begin(job, image, request, control)
        if announce is not None:
            announce(version)
        inherited = InheritedMap(repository, job, version, plan, request.base)
        inherited.enter_unread_pages()
        run = Run(
            control,
            interrupted=f"interrupted: version {version.uid} is incomplete",
            remedy=Advice.CONTINUE_BACKUP(uid=version.uid),
            job=job,
        )
        with run.step(f"Backing up {request.name}", plan.progress_bytes):
            pipeline = Pipeline(repository, image, version, run, plan, inherited)
            pipeline.store()
        warnings = watch.end()
        inherited.enter_absent_blocks()
        report = _finish(repository, job, version, pipeline.statistics, time.monotonic() - started)
        revived = _revive(repository, job, pipeline.blobs_repaired)
        return replace(report, blobs_repaired=pipeline.blobs_repaired, versions_valid=revived, warnings=warnings)


def _job(repository: Repository, request: BackupRequest) -> Job:
    spec = JobSpec(kind=JobKind.BACKUP, label=request.name, names=(request.name,), writes_blobs=True)
    return Job(repository.database, spec, limits=repository.limits)


@contextmanager
def _opened(source: Source | Callable[[], Source]) -> Iterator[Source]:
    if not callable(source):
        yield source
        return
    with closing(source()) as opened:
        yield opened


def _hold_base(repository: Repository, job: Job, base: Version) -> None:
    job.hold(base.id)
    with repository.database.read() as connection:
        now = version_with_uid(connection, base.uid)
    if now is None:
        raise VersionNotFoundError(
            "was removed in the meantime", subject=f"version {base.uid}", remedy="name another base"
        )
    if now.status is not VersionStatus.VALID:
        raise VersionIncompleteError(
            f"is {now.status.value} and cannot be the base of a backup",
            subject=f"version {base.uid}",
            remedy="name a valid one, or back up without hints",
        )


def _plan(repository: Repository, source: Source, request: BackupRequest) -> Plan:
    """Return which blocks to read, after checking some of the others."""
    if request.hints is None:
        return plan_everything(source.size_bytes, repository.block_size)
    damaged = Ranges()
    if request.base is not None:
        with repository.database.read() as connection:
            damaged = damaged_blocks(connection, request.base, repository.block_size)
    plan = plan_backup(
        request.hints,
        source.size_bytes,
        repository.block_size,
        base_bytes=None if request.base is None else request.base.size_bytes,
        data=source.data_extents(),
        damaged=damaged,
    )
    Sampling(repository, source, plan, request.base).check()
    return plan


def _begin(job: Job, source: Source, request: BackupRequest, control: Control) -> Version:
    """Return the version to fill, which the job holds."""
    now = datetime.now(UTC)
    if request.continued is not None:
        job.hold_alone(request.continued, stop=control.stop)
        with job.write() as connection:
            return _continue(connection, source, request)
    with job.write() as connection:
        before = list_versions(connection, name=request.name)
        tags = _tags(before, request, now)
        version = create_version(
            connection,
            name=request.name,
            snapshot_name=request.snapshot_name,
            size_bytes=source.size_bytes,
            created_at=now,
            tag_names=tags,
            expire_at=request.expire_at,
        )
        job.hold_new(connection, version.id)
    _warn_of_the_future(before, now)
    return version


def _tags(before: Sequence[Version], request: BackupRequest, now: datetime) -> Sequence[str]:
    """Return the tags of a new version: the requested ones, and those due for its name."""
    tags = automatic_tags(before, now) if request.tags is None else request.tags
    return (*tags, *due_tags(before, request.schedulers, now, name=request.name))


def _warn_of_the_future(versions_of_name: Sequence[Version], now: datetime) -> None:
    ahead = [version for version in versions_of_name if version.is_dated_in_the_future(now)]
    if ahead:
        newest = ahead[-1]
        _log.warning(
            "versions of %s dated in the future: %d, the newest %s of %s UTC; until then they count neither for "
            "schedules nor as `latest`; %s",
            newest.name,
            len(ahead),
            newest.uid,
            f"{newest.created_at:%Y-%m-%d %H:%M:%S}",
            Advice.REMOVE_VERSIONS(),
        )


def _continue(connection: Connection, source: Source, request: BackupRequest) -> Version:
    """Return the incomplete version to continue, with the tags and the expiry date of this request.

    Raises:
        VersionError: it is not incomplete, or gone.
        UsageError: its name or size is another one.
    """
    assert request.continued is not None
    uid = request.continued.uid
    version = version_with_uid(connection, uid)
    if version is None:
        raise VersionNotFoundError(
            "was removed in the meantime", subject=f"version {uid}", remedy="start the backup over"
        )
    if version.status is not VersionStatus.INCOMPLETE:
        raise VersionError(
            f"is {version.status.value}: there is nothing to continue",
            subject=f"version {uid}",
            remedy="make a new backup",
        )
    for what, given, has in (
        ("the name", request.name, version.name),
        ("the snapshot name", request.snapshot_name or version.snapshot_name, version.snapshot_name),
        ("the size of the source", source.size_bytes, version.size_bytes),
    ):
        if given != has:
            raise UsageError(
                f"is {given}, but that of version {uid} is {has}",
                subject=what,
                remedy="continue with the same image, or make a new backup",
            )
    add_tags(connection, version.id, request.tags or ())
    if request.expire_at is not None:
        set_expiry(connection, version.id, request.expire_at)
    return version_with_uid(connection, uid) or version


def _check_text(what: str, text: str, *, least: int) -> None:
    if not least <= len(text) <= NAME_LENGTH:
        raise UsageError(
            f"has {len(text)} characters; {least} to {NAME_LENGTH} are allowed", subject=f"{what} of a version"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"is {text!r}, which is not UTF-8", subject=f"{what} of a version", remedy="write it in UTF-8"
        ) from None


def _revive(repository: Repository, job: Job, blobs_repaired: int) -> tuple[VersionUid, ...]:
    """Make versions valid again whose damaged blobs the backup has stored again."""
    with repository.database.read() as connection:
        # A backup that was killed may have repaired the last damaged blob.
        may_be_whole = blobs_repaired or not has_damage(connection)
    if not may_be_whole:
        return ()
    revived = revive_repaired_versions(repository, job)
    if blobs_repaired:
        _log.warning(
            "%d damaged blobs were found in the source and stored again; valid again: %s",
            blobs_repaired,
            ", ".join(revived) or "no version",
        )
    return revived


def _finish(
    repository: Repository, job: Job, version: Version, statistics: BackupStatistics, duration_s: float
) -> BackupReport:
    with job.write() as connection:  # without its job, the version may have lost its blobs
        forget_holes(connection, version.id, block_count(version.size_bytes, repository.block_size))
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
