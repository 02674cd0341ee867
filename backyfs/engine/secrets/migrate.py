"""Re-seal blobs in place: in another encryption version, or under new data keys.

    choose -> load, check, seal, put -> flush -> change rows
    owner     worker                    owner    owner

The row of a blob changes to its new object, so this applies to every version that uses it. A migration that is
killed keeps what it has done, and the next one continues with the rest. Old objects are doomed in the same
transaction, and a cleanup deletes them. If a blob with the same bytes is already sealed as wanted, the pages of the
block maps are changed to refer to that one.

Backups, restores and mounts can run at the same time: they use blob ids, and look up an object that is gone.
"""

from __future__ import annotations

import time
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from backyfs import sealing
from backyfs.blocks import load_block, new_blob_uids, new_shelf, save_blocks
from backyfs.engine.catalog.publish import catalog_kept
from backyfs.errors import DAMAGE, BackyfsError, IntegrityError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.maps.blockmap import BlobsGoneError, replace_blobs
from backyfs.metadata.records.blobs import find_blobs, load_blobs
from backyfs.metadata.records.versions import find_version
from backyfs.metadata.upkeep.checks import blobs_of_versions
from backyfs.metadata.upkeep.migration import BlobCount, Outdated, blobs_to_reseal, count_outdated, used_pages_with
from backyfs.metadata.upkeep.replacement import Replacement, replace_objects
from backyfs.model import BlobId, JobKind, JobSpec
from backyfs.remedies import Advice
from backyfs.work.blobset import BlobSet
from backyfs.work.flushbatch import FlushBatch
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Run
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backyfs.model import Blob, Version
    from backyfs.repository import Repository
    from backyfs.work.run import Control

_INTERRUPTED = "interrupted: blocks re-sealed so far stay that way; run the command again for the rest"
_CHUNK_BYTES = 4 << 20  # small blobs are sealed in chunks of up to this many bytes and
_CHUNK_BLOBS = 256      # this many blobs
_MERGED = 100_000       # the most replaced blobs to remember before pages are changed: 20 MB


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationRequest:
    """What to re-seal."""

    versions: tuple[Version, ...] | None  # None: all blobs, including those that no version uses yet or any longer
    outdated: Outdated
    workers: int | None = None            # threads; None: enough to keep the processors busy


def requested_migration(
    repository: Repository,
    names: Sequence[str] | None,
    *,
    to: int | None = None,
    before: datetime | None = None,
    workers: int | None = None,
) -> MigrationRequest:
    """Return a request for the versions that a person names, None for all; by default to the version of new blobs.

    Raises:
        ConfigError: there is no encryption version `to`.
        VersionNotFoundError: one of the names matches no version, or several.
    """
    if to is not None:
        sealing.check_configured(to)
    versions = None
    if names is not None:
        with repository.database.read() as connection:
            found = {version.id: version for version in (find_version(connection, name) for name in names)}
        versions = tuple(found.values())
    target = repository.blocks.encryption_version if to is None else to
    return MigrationRequest(versions=versions, outdated=Outdated(to=target, before=before), workers=workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """What a migration will do."""

    counts: tuple[BlobCount, ...]  # of what to re-seal, by current encryption version

    @property
    def blobs(self) -> int:
        """Return how many blobs will be re-sealed."""
        return sum(count.blobs for count in self.counts)

    @property
    def bytes(self) -> int:
        """Return how many plain bytes they have."""
        return sum(count.bytes for count in self.counts)


@dataclass(slots=True, kw_only=True)
class MigrationReport:
    """What a migration has done."""

    plan: MigrationPlan
    blobs: int = 0         # re-sealed
    bytes: int = 0         # plain bytes of these
    stored_bytes: int = 0  # of their new objects
    merged: int = 0        # replaced by others with the same bytes
    damaged: dict[str, BackyfsError] = field(default_factory=dict)  # by uid: blobs left as they are, and why
    duration_s: float = 0.0

    @property
    def errors(self) -> list[IntegrityError]:
        """What stays as it was."""
        if not self.damaged:
            return []
        return [
            IntegrityError(
                f"{len(self.damaged)} damaged blobs, which the log lists, were not re-encrypted",
                remedy=Advice.SCRUB_EVERYTHING(),
            )
        ]


def plan_migration(repository: Repository, request: MigrationRequest) -> MigrationPlan:
    """Count what `migrate` would do.

    Raises:
        DatabaseError: the database fails.
    """
    return _plan(repository, request, _chosen(repository, request.versions))


def migrate(
    repository: Repository,
    request: MigrationRequest,
    *,
    control: Control = UNATTENDED,
) -> MigrationReport:
    """Re-seal blobs while other commands run. Damaged blobs are reported and left as they are.

    Raises:
        InterruptedByUser: `control` asked to stop; blobs re-sealed so far stay that way.
        MissingKeyError: there is no key for the encryption version.
        StorageError, DatabaseError, JobLostError: likewise.
    """
    started = time.monotonic()
    names = tuple(version.name for version in request.versions or ())
    spec = JobSpec(kind=JobKind.MIGRATE_ENCRYPTION, names=names, writes_blobs=True)
    with catalog_kept(repository, control), Job(repository.database, spec, limits=repository.limits) as job:
        chosen = _chosen(repository, request.versions)
        run = Run(control, interrupted=_INTERRUPTED, job=job)
        migrator = _Migrator(repository, request, _plan(repository, request, chosen), run)
        migrator.migrate(chosen)
    migrator.report.duration_s = time.monotonic() - started
    return migrator.report


def _plan(repository: Repository, request: MigrationRequest, chosen: BlobSet | None) -> MigrationPlan:
    with repository.database.read() as connection:
        is_chosen = None if chosen is None else chosen.__contains__
        return MigrationPlan(counts=tuple(count_outdated(connection, request.outdated, is_chosen)))


def _chosen(repository: Repository, versions: tuple[Version, ...] | None) -> BlobSet | None:
    if versions is None:
        return None
    chosen = BlobSet()
    with repository.database.read() as connection:
        for blob_ids in blobs_of_versions(connection, versions):
            for blob_id in blob_ids:
                chosen.add(blob_id)
    return chosen


@dataclass(frozen=True, slots=True)
class _Done:
    """The result for some blobs."""

    sealed: list[Replacement]
    damaged: list[tuple[Blob, BackyfsError]]
    error: BackyfsError | None = None  # that ended it early


class _Migrator:
    """One migration under way. Owned by the thread that calls `migrate`."""

    def __init__(self, repository: Repository, request: MigrationRequest, plan: MigrationPlan, run: Run) -> None:
        self._repository = repository
        self._outdated = request.outdated
        self._workers = request.workers or repository.width.workers
        self._blocks = replace(repository.blocks, encryption_version=request.outdated.to)
        self._run = run
        self._unflushed = FlushBatch[Replacement](repository.limits.flush)
        self._coming: dict[bytes, BlobId] = {}  # by fingerprint: blobs being sealed
        self._again: list[BlobId] = []          # have the bytes of one that is being sealed: to be checked again
        self._merged: dict[BlobId, BlobId] = {}
        self.report = MigrationReport(plan=plan)

    def migrate(self, chosen: BlobSet | None) -> None:
        """Re-seal the chosen blobs; None: all that are outdated."""
        with self._run.step("Re-sealing blocks", self.report.plan.bytes):
            with Window[_Done](self._workers) as window:
                try:
                    self._seal(window, self._ids(chosen))
                    while again := self._again:
                        self._again = []
                        self._seal(window, again)
                except BackyfsError:
                    with suppress(BackyfsError):  # the first error is the one to report
                        self._salvage(window)
                    raise
            self._merge()

    def _ids(self, chosen: BlobSet | None) -> Iterator[BlobId]:
        last = BlobId(0)
        while True:
            with self._repository.database.read() as connection:
                found = blobs_to_reseal(connection, self._outdated, last)
            if not found:
                return
            yield from (blob_id for blob_id in found if chosen is None or blob_id in chosen)
            last = found[-1]

    def _seal(self, window: Window[_Done], blob_ids: Iterable[BlobId]) -> None:
        for done in window.map(self._seal_blobs, self._chunks(blob_ids), most=2 * self._workers):
            self._settle(done)
            self._run.check()
        self._flush()
        self._run.check()  # workers that were stopped skip the rest of their blobs

    def _chunks(self, blob_ids: Iterable[BlobId]) -> Iterator[list[Blob]]:
        limit = max(1, min(_CHUNK_BLOBS, _CHUNK_BYTES // self._repository.block_size))
        for batch in batches(blob_ids):
            blobs = iter(self._sort(batch))
            while chunk := list(islice(blobs, limit)):
                self._run.check()
                yield chunk
            if len(self._merged) >= _MERGED:
                self._merge()

    def _salvage(self, window: Window[_Done]) -> None:
        """Record what was sealed when the migration ended early."""
        for done in window.drain():
            self._settle(done)
        self._flush()
        self._merge()

    def _sort(self, blob_ids: Sequence[BlobId]) -> list[Blob]:
        """Return which of these blobs to seal; note those that another blob replaces."""
        with self._repository.database.read() as connection:
            blobs = load_blobs(connection, blob_ids)
            wanted = {blob.fingerprint for blob in blobs.values() if blob.fingerprint is not None}
            there = find_blobs(connection, wanted, encryption_version=self._outdated.to)
        to_seal = []
        for blob in (blobs[blob_id] for blob_id in blob_ids if blob_id in blobs):
            other = blob.id if blob.fingerprint is None else there.get(blob.fingerprint, blob.id)
            if other != blob.id:
                self._merged[blob.id] = other
                self._run.advance(blob.size)
            elif blob.fingerprint is not None and self._coming.setdefault(blob.fingerprint, blob.id) != blob.id:
                self._again.append(blob.id)
            else:
                to_seal.append(blob)
        return to_seal

    def _settle(self, done: _Done) -> None:
        for sealed in done.sealed:
            self._unflushed.add(sealed, sealed.saved.stored_size)
        for blob, reason in done.damaged:
            self._note_damaged(blob, reason)
        if done.error is not None:
            raise done.error
        if self._unflushed.is_due():
            self._flush()

    def _note_damaged(self, blob: Blob, reason: BackyfsError) -> None:
        self._run.advance(blob.size)
        if blob.fingerprint is not None:
            self._coming.pop(blob.fingerprint, None)
        with self._repository.database.read() as connection:
            if blob.id in load_blobs(connection, [blob.id]):  # otherwise its version was removed and a cleanup has run
                self.report.damaged[blob.uid] = reason

    def _flush(self) -> None:
        """Make the new objects durable, and change the rows to them."""
        self._repository.blocks.storage.flush()
        now = datetime.now(UTC)
        for batch in batches(self._unflushed.take()):
            with self._run.job.write() as connection:
                changed = replace_objects(connection, batch, now)
            self._run.advance(sum(sealed.blob.size for sealed in batch))
            for sealed in batch:
                if sealed.blob.fingerprint is not None:
                    self._coming.pop(sealed.blob.fingerprint, None)
                if sealed.blob.id in changed:
                    self.report.blobs += 1
                    self.report.bytes += sealed.blob.size
                    self.report.stored_bytes += sealed.saved.stored_size

    def _merge(self) -> None:
        """Change the pages that refer to replaced blobs."""
        merged, self._merged = self._merged, {}
        if not merged:
            return
        with self._repository.database.read() as connection:
            page_ids = list(used_pages_with(connection, merged))
        at_once = self._repository.limits.pages_at_once
        for start in range(0, len(page_ids), at_once):
            # If a cleanup deleted the other blob, the next migration seals this one.
            with suppress(BlobsGoneError), self._run.job.write() as connection:
                for page_id in page_ids[start : start + at_once]:
                    replace_blobs(connection, page_id, merged)
        self.report.merged += len(merged)

    # In worker threads.

    def _seal_blobs(self, blobs: Sequence[Blob]) -> _Done:
        done = _Done([], [])
        uids = new_blob_uids(new_shelf(), len(blobs))
        try:
            for blob, uid in zip(blobs, uids, strict=True):
                if self._run.stops():
                    break
                try:
                    block = load_block(self._repository.blocks, blob)
                except DAMAGE as error:
                    done.damaged.append((blob, copy(error)))  # without the frames that hold the block and its key
                else:
                    # The tag has authenticated a block without fingerprint; once it is stored plain, nothing else will.
                    fingerprint = blob.fingerprint or self._blocks.fingerprint(block)
                    saved = save_blocks(self._blocks, [(uid, fingerprint, block)])
                    done.sealed.append(Replacement(blob=blob, saved=saved[0]))
        except BackyfsError as error:
            return _Done(done.sealed, done.damaged, error)
        return done
