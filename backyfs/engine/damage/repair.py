"""Repair: store damaged blobs again, from wherever their bytes still exist.

Only bytes with the fingerprint of the blob are stored. The new object is durable before the row changes to it. That
repairs all versions that use the blob, and a repair that is killed keeps what it has done.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.blocks import new_blob_uids, new_shelf, save_blocks
from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.damage.marking import mark_versions, report_damage, revive_repaired_versions
from backyfs.engine.damage.origins import BlobOrigin, ImageOrigin, Occurrence, RepositoryOrigin
from backyfs.errors import BackyfsError, DamagedPageError, IntegrityError, UsageError
from backyfs.geometry import PAGE_ENTRIES, block_count
from backyfs.metadata.db.batches import batches
from backyfs.metadata.maps.blockmap import list_pages, page_entries
from backyfs.metadata.records.blobs import load_blobs
from backyfs.metadata.records.versions import list_versions
from backyfs.metadata.upkeep.checks import damaged_in_use, pages_with
from backyfs.metadata.upkeep.replacement import Replacement, replace_objects
from backyfs.model import BlobId, JobKind, JobSpec
from backyfs.remedies import Advice, Remedy
from backyfs.work.flushbatch import FlushBatch
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.engine.damage.origins import Origin
    from backyfs.model import Blob, Buffer, DamagedRange, Version, VersionUid
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source
    from backyfs.work.run import Control

_INTERRUPTED = "interrupted: blocks repaired so far stay repaired; run the command again for the rest"
_MOST_OCCURRENCES = 16  # of a blob that are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairRequest:
    """What to repair, and from what. Blobs of the same repository with the same bytes are always used."""

    versions: tuple[Version, ...] | None = None  # whose blobs to repair; None: all versions
    source: Source | None = None
    other: Repository | None = None
    search: bool = False   # search the whole source for the bytes
    dry_run: bool = False  # store nothing


@dataclass(slots=True, kw_only=True)
class RepairReport:
    """What was repaired, or would be in a dry run."""

    blobs_damaged: int   # before
    blobs_repaired: int = 0
    bytes_repaired: int = 0  # plain bytes of them
    bytes_stored: int = 0    # of their new objects
    blobs_left: int = 0      # still damaged
    remedy: Remedy | None = None  # what else may repair these
    versions_valid: tuple[VersionUid, ...] = ()  # invalid until now
    duration_s: float = 0.0

    @property
    def errors(self) -> list[IntegrityError]:
        """What stays damaged."""
        if not self.blobs_left:
            return []
        return [
            IntegrityError(
                f"{self.blobs_left} damaged blobs, in ranges that the log lists, cannot be repaired from there; "
                "everything else of these versions can be restored",
                remedy=self.remedy,
            )
        ]


@dataclass(slots=True)
class _Damaged:
    """A blob to repair."""

    blob: Blob
    occurrences: list[Occurrence] = field(default_factory=list)


def repair(
    repository: Repository,
    request: RepairRequest,
    *,
    control: Control = UNATTENDED,
    on_damage: Callable[[Version, DamagedRange], None] = lambda _version, _damage: None,
) -> RepairReport:
    """Repair blobs that a scrub, restore or mount found damaged. `on_damage` is called with ranges still damaged.

    Raises:
        UsageError: the source should be searched, but there is none.
        InterruptedByUser: `control` asked to stop; blocks repaired so far stay repaired.
        MissingKeyError: blobs are encrypted, and there is no key.
        StorageError, DatabaseError, JobLostError: likewise.
    """
    if request.search and request.source is None:
        raise UsageError("there is no source to search", remedy=Advice.NAME_REPAIR_SOURCE())
    started = time.monotonic()
    with catalog_kept(repository, control), _job(repository, request) as job:
        for version in request.versions or ():
            job.hold(version.id)
        repairer = _Repairer(repository, request, Run(control, interrupted=_INTERRUPTED, job=job))
        repairer.repair_all()
        repairer.end(on_damage)
    repairer.report.duration_s = time.monotonic() - started
    return repairer.report


def _job(repository: Repository, request: RepairRequest) -> Job:
    versions = request.versions or ()
    spec = JobSpec(
        kind=JobKind.REPAIR,
        label=" ".join(version.uid for version in versions),
        names=tuple(version.name for version in versions),
        writes_blobs=not request.dry_run,
    )
    return Job(repository.database, spec, limits=repository.limits)


class _Repairer:
    """A repair in progress."""

    def __init__(self, repository: Repository, request: RepairRequest, run: Run) -> None:
        self._repository = repository
        self._request = request
        self._run = run
        self._image = None if request.source is None else ImageOrigin(request.source)
        self._origins: list[Origin] = [BlobOrigin(repository)]
        if self._image is not None:
            self._origins.append(self._image)
        if request.other is not None:
            self._origins.append(RepositoryOrigin(repository, request.other))
        self._left = _find_damaged(repository, request.versions)
        self._shelf = new_shelf()
        self._unflushed = FlushBatch[Replacement](repository.limits.flush)
        self.report = RepairReport(blobs_damaged=len(self._left))

    def repair_all(self) -> None:
        """Repair whatever can be repaired."""
        try:
            self._try_origins()
            if self._request.search and self._image is not None:
                self._search(self._image)
        except BackyfsError:
            with suppress(BackyfsError):  # the first error is the one to report
                self._flush()
            raise
        self._flush()

    def end(self, on_damage: Callable[[Version, DamagedRange], None]) -> None:
        """Make versions valid again if they are whole, and report the damaged ranges of the others."""
        chosen = None if self._request.versions is None else {version.id for version in self._request.versions}
        left = {blob_id: _reason(damaged.blob, self._request) for blob_id, damaged in self._left.items()}
        self.report.blobs_left = len(left)
        self.report.remedy = _remedy(self._request) if left else None

        def report_chosen(version: Version, damage: DamagedRange) -> None:
            if chosen is None or version.id in chosen:
                on_damage(version, damage)

        if self._request.dry_run:
            report_damage(self._repository, left, report_chosen)
            return
        self.report.versions_valid = revive_repaired_versions(self._repository, self._run.job)
        mark_versions(self._repository, left, report_chosen)

    def _try_origins(self) -> None:
        with self._run.step("Repairing", sum(damaged.blob.size for damaged in self._left.values())):
            for damaged in list(self._left.values()):
                self._run.check()
                if damaged.blob.fingerprint is not None:
                    self._repair(damaged, damaged.blob.fingerprint)
                self._run.advance(damaged.blob.size)

    def _repair(self, damaged: _Damaged, fingerprint: bytes) -> None:
        for origin in self._origins:
            for block in origin.candidates(damaged.blob, damaged.occurrences):
                if len(block) == damaged.blob.size and self._repository.blocks.matches(block, fingerprint):
                    self._store(damaged.blob, block)
                    return

    def _search(self, image: ImageOrigin) -> None:
        assert self._request.source is not None
        wanted: dict[bytes, list[Blob]] = {}
        for damaged in self._left.values():
            if damaged.blob.fingerprint is not None:
                wanted.setdefault(damaged.blob.fingerprint, []).append(damaged.blob)
        if not wanted:
            return
        sizes = {blob.size for blobs in wanted.values() for blob in blobs}
        with self._run.step("Searching the source", self._request.source.size_bytes):
            for block in image.search(self._repository.block_size, sizes, self._run.advance):
                self._run.check()
                for blob in wanted.pop(self._repository.blocks.fingerprint(block), ()):
                    if blob.size == len(block):
                        self._store(blob, block)
                if not wanted:
                    return

    def _store(self, blob: Blob, block: Buffer) -> None:
        """Store the bytes of a damaged blob."""
        del self._left[blob.id]
        self.report.blobs_repaired += 1
        self.report.bytes_repaired += blob.size
        if self._request.dry_run:
            return
        assert blob.fingerprint is not None
        new = [(new_blob_uids(self._shelf, 1)[0], blob.fingerprint, block)]
        saved = save_blocks(self._repository.blocks, new)[0]
        self._unflushed.add(Replacement(blob=blob, saved=saved), saved.stored_size)
        self.report.bytes_stored += saved.stored_size
        if self._unflushed.is_due():
            self._flush()

    def _flush(self) -> None:
        """Make the new objects durable, and change the rows to them. Blobs repaired by others stay as they are."""
        if self._unflushed.items:
            self._repository.blocks.storage.flush()
        now = datetime.now(UTC)
        for batch in batches(self._unflushed.take()):
            with self._run.job.write() as connection:
                replace_objects(connection, batch, now)


def _find_damaged(repository: Repository, versions: Sequence[Version] | None) -> dict[BlobId, _Damaged]:
    """Return the damaged blobs of these versions, or of all, in order, each with some of its occurrences."""
    found: dict[BlobId, _Damaged] = {}
    with repository.database.read() as connection:
        ids = damaged_in_use(connection)
        known = load_blobs(connection, ids)
        pages = pages_with(connection, set(ids)) if ids else set()
        for version in list_versions(connection) if versions is None else versions:
            blocks = block_count(version.size_bytes, repository.block_size)
            for page_no, page_id in list_pages(connection, version.id):
                if page_id not in pages:
                    continue
                with suppress(DamagedPageError):
                    for position, entry in enumerate(page_entries(connection, version, page_no, blocks)):
                        if (blob_id := BlobId(entry)) in known:
                            occurrences = found.setdefault(blob_id, _Damaged(known[blob_id])).occurrences
                            if len(occurrences) < _MOST_OCCURRENCES:
                                start = (page_no * PAGE_ENTRIES + position) * repository.block_size
                                occurrences.append(Occurrence(version=version, start=start))
    return dict(sorted(found.items()))


def _reason(blob: Blob, request: RepairRequest) -> str:
    if blob.fingerprint is None:
        return "has no fingerprint, like some blobs of backy2, so its bytes cannot be recognised"
    if request.source is not None and not request.search:
        return "is damaged, and the source does not have its bytes in the same places"
    if request.source is not None or request.other is not None:
        return "is damaged, and its bytes were not found"
    return "is damaged, and no other blob has its bytes"


def _remedy(request: RepairRequest) -> Remedy | None:
    if request.source is not None:
        return None if request.search else Advice.SEARCH_SOURCE()
    return Advice.NAME_REPAIR_SOURCE()
