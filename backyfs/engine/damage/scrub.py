"""Scrub: read blobs back, check them, and mark which are damaged or whole again.

Each blob is read once, however many blocks and versions use it. Memory: 8 bytes for each blob to read, a bit for each
blob id, and about 100 bytes for each damaged blob.
"""

from __future__ import annotations

import logging
import random
import time
from array import array
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.damage.blobchecker import BlobChecker
from backyfs.engine.damage.comparison import SourceComparison
from backyfs.engine.damage.mapchecker import check_maps
from backyfs.engine.damage.marking import mark_versions, revive_versions
from backyfs.errors import BackyfsError, DamagedPageError, IntegrityError, UsageError, VersionNotFoundError
from backyfs.metadata.maps.blockmap import references_add_up
from backyfs.metadata.upkeep.checks import blobs_of_versions, due_blobs, used_blobs
from backyfs.model import BlobId, JobKind, JobSpec
from backyfs.remedies import Advice
from backyfs.work.blobset import BlobSet
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from backyfs.model import DamagedRange, Version, VersionUid
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source
    from backyfs.work.run import Control

_ALL = 100  # percent
_INTERRUPTED = "interrupted: results so far are recorded"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubRequest:
    """What to check."""

    versions: tuple[Version, ...] | None   # None: all
    percentile: int = _ALL                 # size of a random sample of these blobs; 0 to 100
    not_since: datetime | None = None      # only blobs not checked since then; None: all
    source: Source | None = None           # to compare with the version, if there is only one


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What a scrub found."""

    blobs_checked: int
    bytes_checked: int   # plain bytes of them
    blobs_damaged: int   # in use by versions
    blobs_repaired: int  # marked as damaged, but whole
    bytes_unknown: int   # of versions whose block maps are damaged
    references_right: bool | None  # whether reference counts are right; None: not all versions were checked
    bytes_differing: int  # from the source
    versions_invalid: tuple[VersionUid, ...]  # valid until now
    versions_valid: tuple[VersionUid, ...]    # invalid until now
    duration_s: float

    @property
    def errors(self) -> list[IntegrityError]:
        """What was found, in the order of this report."""
        return list(self._errors())

    def _errors(self) -> Iterator[IntegrityError]:
        if self.blobs_damaged:
            blobs = f"{self.blobs_damaged} blob{'' if self.blobs_damaged == 1 else 's'}"
            yield IntegrityError(
                f"damage in {blobs}, which are marked, in ranges that the log lists; versions with them are invalid",
                remedy=Advice.REPAIR_OR_BACK_UP(),
            )
        if self.bytes_unknown:
            yield IntegrityError(
                f"the block maps of versions are damaged in {self.bytes_unknown} bytes of their images, which the log "
                "lists; their objects may be intact, so keep the storage",
                remedy=Advice.RECOVER_DATABASE(),
            )
        if self.references_right is False:
            yield IntegrityError(
                "the database counts other references to blocks than there are, so any other cleanup than a full one "
                "might delete blocks that are in use",
                remedy=Advice.CLEAN_UP_FULLY(),
            )
        if self.bytes_differing:
            yield IntegrityError(
                f"the source differs in {self.bytes_differing} bytes, which the log lists; nothing was marked for that",
                remedy="check whether it was changed after the backup, or is another image",
            )


def scrub(
    repository: Repository,
    request: ScrubRequest,
    *,
    control: Control = UNATTENDED,
    on_damage: Callable[[Version, DamagedRange], None] = lambda _version, _damage: None,
) -> ScrubReport:
    """Check blobs, and mark damaged ones and the versions that use them.

    `on_damage` is called with the ranges that are damaged or differ from the source, after everything is marked. A
    scrub that ends early has marked and reported what it found.

    Raises:
        UsageError: there is a source, but not exactly one version.
        StorageError: the storage is not available or refuses; blobs it did not return are not marked.
        SourceError: the source cannot be read, shrank or grew.
        InterruptedByUser: `control` asked to stop.
        MissingKeyError: a blob is encrypted, and no key is configured.
        DatabaseError, JobLostError: the marks cannot be stored.
    """
    if request.source is not None and (request.versions is None or len(request.versions) != 1):
        raise UsageError("a source belongs to one version", remedy="name only that version")
    started = time.monotonic()
    with catalog_kept(repository, control), _job(repository, request) as job:
        versions = _held(job, request.versions)
        run = Run(control, interrupted=_INTERRUPTED, remedy=Advice.CONTINUE_SCRUB(), job=job)
        chosen = _choose(repository, versions, request)
        checker = BlobChecker(repository, run)
        faults = check_maps(repository, versions, run.check)
        references_right = _references_right(repository) if versions is None else None
        try:
            with run.step("Scrubbing", len(chosen) * repository.block_size):
                checker.run(map(BlobId, chosen))
        except BackyfsError:
            with suppress(BackyfsError):  # the first error is the one to report
                mark_versions(repository, checker.found.damaged | faults.gone, on_damage, faults.ranges)
            raise
        marked = mark_versions(repository, checker.found.damaged | faults.gone, on_damage, faults.ranges)
        valid: tuple[VersionUid, ...] = ()
        if request.percentile == _ALL:
            ids = None if versions is None else {version.id for version in versions}
            valid = revive_versions(repository, job, ids)
        differing = 0
        if request.source is not None and versions:
            comparing = run.saying("interrupted while comparing with the source; the blobs were checked")
            compared = SourceComparison(repository, versions[0], request.source, request.percentile, comparing)
            with comparing.step("Comparing with the source", versions[0].size_bytes):
                for damage in compared.run():
                    differing += damage.stop - damage.start
                    on_damage(versions[0], damage)
    return ScrubReport(
        blobs_checked=checker.found.blobs,
        bytes_checked=checker.found.bytes,
        blobs_damaged=marked.blobs,
        blobs_repaired=checker.found.repaired,
        bytes_unknown=faults.bytes,
        references_right=references_right,
        bytes_differing=differing,
        versions_invalid=marked.versions,
        versions_valid=valid,
        duration_s=time.monotonic() - started,
    )


def _references_right(repository: Repository) -> bool | None:
    with repository.database.read() as connection:
        try:
            return references_add_up(connection)
        except DamagedPageError:
            return None  # the counts in an unreadable page are unknown; the page was reported


def _job(repository: Repository, request: ScrubRequest) -> Job:
    versions = request.versions or ()
    label = "--all" if request.versions is None else " ".join(version.uid for version in versions)
    spec = JobSpec(kind=JobKind.SCRUB, label=label, names=tuple(version.name for version in versions))
    return Job(repository.database, spec, limits=repository.limits)


def _held(job: Job, versions: tuple[Version, ...] | None) -> list[Version] | None:
    """Hold the requested versions, without those removed in the meantime.

    If all versions are scrubbed, none is held: their blobs are looked up one after the other, and a blob that is
    removed with its version is not damage.
    """
    if versions is None:
        return None
    held = []
    for version in versions:
        try:
            job.hold(version.id)
        except VersionNotFoundError:
            _log.warning("version %s was removed in the meantime and is left out", version.uid)
            continue
        held.append(version)
    return held


def _choose(repository: Repository, versions: list[Version] | None, request: ScrubRequest) -> array[int]:
    """Return the blobs to read. With `not_since`, those never checked come first, then those checked longest ago."""
    with repository.database.read() as connection:
        wanted: BlobSet | None = None
        if versions is not None:
            wanted = BlobSet()
            for blob_ids in blobs_of_versions(connection, versions):
                for blob_id in blob_ids:
                    wanted.add(blob_id)
        if request.not_since is not None:
            due = due_blobs(connection, request.not_since)
            chosen = array("q", (blob_id for blob_id in due if wanted is None or blob_id in wanted))
        else:
            chosen = array("q", used_blobs(connection) if wanted is None else wanted)
    return chosen if request.percentile == _ALL else array("q", _sample(chosen, request.percentile))


def _sample(chosen: array[int], percentile: int) -> Iterator[int]:
    """Yield a random sample of this many percent, rounded up, in the same order."""
    # Knuth's algorithm S, which needs no second list.
    needed = -(-len(chosen) * percentile // _ALL)
    for position, blob_id in enumerate(chosen):
        if random.random() * (len(chosen) - position) < needed:  # noqa: S311 - no secret
            needed -= 1
            yield blob_id
