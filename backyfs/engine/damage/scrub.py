"""Scrub: read blobs back, check them, and mark what is damaged or whole again.

Each blob is read once, however many blocks and versions it is. Memory: 8 bytes for each blob that is to be read,
a bit for each id of a blob, and about 100 bytes for each blob that is damaged.
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
from backyfs.engine.damage.comparison import Comparison
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
_INTERRUPTED = "interrupted: what was checked until now is recorded; a scrub with --not-since goes on from there"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubRequest:
    """What to check."""

    versions: tuple[Version, ...] | None   # None: all
    percentile: int = _ALL                 # of the blobs that are to be checked, a random sample; 0 to 100
    not_since: datetime | None = None      # only blobs that were not checked since then; None: whenever it was
    source: Source | None = None           # to compare with the one version


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubReport:
    """What a scrub found."""

    blobs_checked: int
    bytes_checked: int   # plain bytes of these
    blobs_damaged: int   # that versions use
    blobs_repaired: int  # that were marked as damaged and are whole
    bytes_unknown: int   # of versions, because their block maps are damaged
    references_right: bool | None  # whether the counts of references add up; None: not all versions were checked
    bytes_differing: int  # from the source
    versions_invalid: tuple[VersionUid, ...]  # that were valid
    versions_valid: tuple[VersionUid, ...]    # that were invalid
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
    tell: Callable[[Version, DamagedRange], None] = lambda _version, _damage: None,
) -> ScrubReport:
    """Check blobs, mark them and the versions that use them, and tell the ranges that are damaged or differ.

    Everything is marked before the first damaged range is told. A scrub that ends early has marked and told what it
    found.

    Raises:
        UsageError: a source is given, and not one version.
        StorageError: the storage is not there, or refuses; what it did not give is not marked.
        SourceError: the source cannot be read, shrank or grew.
        InterruptedByUser: `control` asked to stop.
        MissingKeyError: a blob is encrypted, and no key is configured.
        DatabaseError, JobLostError: the marks cannot be stored.
    """
    if request.source is not None and (request.versions is None or len(request.versions) != 1):
        raise UsageError("a source is the one of one version; name that version alone")
    started = time.monotonic()
    with catalog_kept(repository, control), _job(repository, request) as job:
        versions = _held(job, request.versions)
        run = Run(control, interrupted=_INTERRUPTED, job=job)
        chosen = _choose(repository, versions, request)
        checker = BlobChecker(repository, run)
        faults = check_maps(repository, versions, run.check)
        references_right = _references_right(repository) if versions is None else None
        try:
            with run.step("Scrubbing", len(chosen) * repository.block_size):
                checker.run(map(BlobId, chosen))
        except BackyfsError:
            with suppress(BackyfsError):  # the first error is the one to tell
                mark_versions(repository, checker.found.damaged | faults.gone, tell, faults.ranges)
            raise
        marked = mark_versions(repository, checker.found.damaged | faults.gone, tell, faults.ranges)
        valid: tuple[VersionUid, ...] = ()
        if request.percentile == _ALL:
            ids = None if versions is None else {version.id for version in versions}
            valid = revive_versions(repository, job, ids)
        differing = 0
        if request.source is not None and versions:
            comparing = run.saying("interrupted while comparing with the source; the blobs were checked")
            compared = Comparison(repository, versions[0], request.source, request.percentile, comparing)
            with comparing.step("Comparing with the source", versions[0].size_bytes):
                for damage in compared.run():
                    differing += damage.stop - damage.start
                    tell(versions[0], damage)
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
            return None  # a page that nobody can read counts for nobody knows how many, and was told


def _job(repository: Repository, request: ScrubRequest) -> Job:
    versions = request.versions or ()
    label = "--all" if request.versions is None else " ".join(version.uid for version in versions)
    spec = JobSpec(kind=JobKind.SCRUB, label=label, names=tuple(version.name for version in versions))
    return Job(repository.database, spec, limits=repository.limits)


def _held(job: Job, versions: tuple[Version, ...] | None) -> list[Version] | None:
    """Hold the versions that are named; leave out those that were removed meanwhile.

    Where all are meant none is held: their blobs are looked up as they come, and one that goes with its version is
    no damage.
    """
    if versions is None:
        return None
    held = []
    for version in versions:
        try:
            job.hold(version.id)
        except VersionNotFoundError:
            _log.warning("version %s was removed meanwhile and is left out", version.uid)
            continue
        held.append(version)
    return held


def _choose(repository: Repository, versions: list[Version] | None, request: ScrubRequest) -> array[int]:
    """Return the blobs to read, in order: never checked ones first, then by age, where `not_since` asks for them."""
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
    """Yield a random sample of so many percent, rounded up, in the same order."""
    # Knuth's algorithm S: without a second list.
    needed = -(-len(chosen) * percentile // _ALL)
    for position, blob_id in enumerate(chosen):
        if random.random() * (len(chosen) - position) < needed:  # noqa: S311 - no secret
            needed -= 1
            yield blob_id
