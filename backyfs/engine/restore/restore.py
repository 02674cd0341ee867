"""Restore a version, or a part of it, to a target: exact bytes, checked before they are written.

A damaged block is left out and reported with its range; everything else is restored. A restore that ends early leaves
an incomplete target, and nothing else; its error says where to continue.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.damage.suspects import check_suspects
from backyfs.engine.restore.readback import ReadBack
from backyfs.engine.restore.restorer import Restorer
from backyfs.engine.restore.verification import Verification
from backyfs.errors import BackyfsError, IntegrityError, TargetError, UsageError
from backyfs.geometry import block_count
from backyfs.model import JobKind, JobSpec
from backyfs.ownfiles import find_own
from backyfs.remedies import Advice, Remedy
from backyfs.targets.protocol import TargetRequest
from backyfs.targets.registry import find_destination
from backyfs.work.job import Job
from backyfs.work.run import UNATTENDED, Run

if TYPE_CHECKING:
    from backyfs.model import DamagedRange, Version
    from backyfs.repository import Repository
    from backyfs.targets.protocol import Target
    from backyfs.work.run import Control


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How to restore."""

    replace: bool = False             # overwrite the target if it exists
    sparse: bool = False              # skip the holes of the image: the target keeps what it has there
    continue_from: int | None = None  # first block to write; the target exists and has the blocks before it
    # In bytes: restore only a part of the image, to the same offset of the target, the rest of which stays as it is.
    offset: int | None = None         # None: 0
    length: int | None = None         # None: to the end of the image
    differential: bool = False        # read the target, which exists, and write only what differs
    verify: bool = False              # read the target back at the end
    syncs: bool = True                # wait until everything is on the disk

    @property
    def is_part(self) -> bool:
        """Whether only a part of the image is wanted."""
        return self.offset is not None or self.length is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What a restore did."""

    version: Version
    target: str         # a path, null:// or -
    part: range         # bytes of the image that were requested
    bytes_written: int  # without holes; differential: including zeros that the target did not have
    bytes_equal: int    # differential: bytes that the target already had, including zeros
    damaged: tuple[DamagedRange, ...]    # in order; these bytes were not written
    differing: tuple[DamagedRange, ...]  # in order; these bytes were read back different from what was written
    is_verified: bool                    # everything was read back
    duration_s: float

    @property
    def errors(self) -> list[IntegrityError]:
        """What is not in the target as it should be."""
        found = []
        if self.damaged:
            found.append(
                IntegrityError(
                    f"{_bytes_in(self.damaged)} bytes of version {self.version.uid} could not be restored, in ranges "
                    f"that the log lists; everything else is in {self.target}"
                )
            )
        if self.differing:
            found.append(
                IntegrityError(
                    f"{_bytes_in(self.differing)} bytes of {self.target} were not read back as they were written, in "
                    "ranges that the log lists",
                    remedy="look at the log of the kernel, and restore to another disk",
                )
            )
        return found


def _bytes_in(ranges: tuple[DamagedRange, ...]) -> int:
    return sum(damage.stop - damage.start for damage in ranges)


def restore(
    repository: Repository,
    version: Version,
    target_uri: str,
    *,
    replace: bool = False,
    options: RestoreOptions | None = None,
    control: Control = UNATTENDED,
) -> RestoreReport:
    """Write the image of a version to the target that `target_uri` names; see `find_destination`.

    With `replace`, here or in the options, a target that exists is overwritten. At the end everything is on the disk,
    unless the options say otherwise. If a target that keeps what was written stays incomplete, the remedy of the error
    is the advice where to continue, with the number of the block or the bytes as its values.

    Raises:
        UsageError: the options do not fit the target or the version.
        TargetError: the target exists and `replace` is not set, is too small, is in use, belongs to the
            repository, or cannot be written; or not everything reached the disk.
        ReaderGoneError: it is a stream whose reader has gone.
        InterruptedByUser: `control` asked to stop; the target is incomplete.
        DatabaseError: the block map cannot be read.
    """
    chosen = options or RestoreOptions()
    if replace:
        chosen = dataclasses.replace(chosen, replace=True)
    restoring = _Restore(repository, version, target_uri, chosen)
    spec = JobSpec(kind=JobKind.RESTORE, label=version.uid, names=(version.name,))
    with (
        catalog_kept(repository, control),
        Job(repository.database, spec, only_reads=True, limits=repository.limits) as job,
    ):
        job.hold(version.id)
        with closing(restoring.open_target(control)) as target:
            return restoring.write_and_verify(target, Run(control, interrupted="interrupted", job=job))


class _Restore:
    """One restore, from the check of its options to its report."""

    def __init__(
        self, repository: Repository, version: Version, target_uri: str, options: RestoreOptions
    ) -> None:
        self._started = time.monotonic()
        self._repository = repository
        self._version = version
        self._uri = target_uri
        self._destination = find_destination(target_uri, repository.config)
        self._options = options
        self._first_block = options.continue_from or 0
        self._first_byte = self._first_block * repository.block_size
        self._part = _part(version, options)
        self._check()

    def _check(self) -> None:
        destination, options = self._destination, self._options
        blocks = block_count(self._version.size_bytes, self._repository.block_size)
        if self._first_block >= max(1, blocks):
            raise UsageError(
                f"has {blocks} blocks, numbered from 0; block {self._first_block} is beyond its end",
                subject=f"version {self._version.uid}",
            )
        if not destination.keeps and (options.differential or options.verify):
            raise UsageError(
                "cannot be read back, so it can be neither compared nor verified",
                subject=destination.name,
                remedy="name a file or device",
            )
        if not destination.can_continue and options.continue_from is not None:
            raise UsageError(
                "cannot be continued", subject=destination.name, remedy="restore the whole image, or name a file"
            )
        for path in destination.files:
            if find_own(path, self._repository.own_paths) is not None:
                raise TargetError(
                    "belongs to the repository itself",
                    subject=destination.name,
                    remedy="name a target outside of it",
                )
        if destination.size_bytes is not None and destination.size_bytes < self._first_byte:
            raise TargetError(
                f"is {destination.size_bytes} bytes long and has no block {self._first_block}",
                subject=destination.name,
                remedy=Advice.CONTINUE_EARLIER(),
            )

    def open_target(self, control: Control) -> Target:
        """Open the target, to begin or to continue."""
        # Again: it may have changed while the job waited for the database.
        self._destination = find_destination(self._uri, self._repository.config)
        size_bytes = self._needed_bytes() if self._options.is_part else self._version.size_bytes
        request = TargetRequest(
            size_bytes=size_bytes,
            replace=self._options.replace,
            kept_bytes=self._kept_bytes(size_bytes),
            start=self._part.start,
            syncs=self._options.syncs,
            stop=control.stop,
        )
        return self._destination.open(request)

    def _needed_bytes(self) -> int:
        """Return how large the target of a part must be: a file that is larger than the image keeps its size."""
        if self._destination.is_device:
            return self._part.stop
        return max(self._version.size_bytes, self._destination.size_bytes or 0)

    def _kept_bytes(self, size_bytes: int) -> int | None:
        """Return how many bytes at the start of the target stay as they are; None: it may be new."""
        exists = self._destination.exists
        if self._options.differential or (self._options.is_part and self._options.replace and exists):
            return size_bytes
        # Continuing from block 0 keeps nothing, and backy2 created the file if it was missing.
        if self._options.continue_from is not None and (self._first_block > 0 or exists):
            return self._first_byte
        return None

    def write_and_verify(self, target: Target, run: Run) -> RestoreReport:
        """Write everything, read it back if the options say so, and report."""
        readable = target.readable
        read_back = None if readable is None else ReadBack(self._repository.blocks, readable)
        restorer = Restorer(
            self._repository,
            self._version,
            target,
            wanted=range(max(self._part.start, self._first_byte), self._part.stop),
            skips_holes=self._options.sparse,
            present=read_back if self._options.differential else None,
            run=run,
        )
        if self._options.differential and read_back is not None:
            read_back.drop_cache()  # after a write error, the kernel still has pages that are not on the disk
        try:
            restorer.restore()
        except BackyfsError as error:
            if self._destination.keeps:
                error.advise(self._how_to_continue(target, restorer))
            raise
        target.finish()
        differing: list[DamagedRange] = []
        if self._options.verify and read_back is not None:
            verification = Verification(
                self._repository,
                self._version,
                read_back,
                wanted=self._part,
                without=restorer.damaged,
                skips_holes=self._options.sparse and not target.begins_empty,
                run=run.saying("interrupted: everything was written, but not all of it was verified"),
            )
            verification.verify()
            differing = verification.differing
        check_suspects(self._repository, restorer.suspects, run)
        return self._report(restorer, differing)

    def _report(self, restorer: Restorer, differing: list[DamagedRange]) -> RestoreReport:
        return RestoreReport(
            version=self._version,
            target=self._destination.uri,
            part=self._part,
            bytes_written=restorer.written_bytes,
            bytes_equal=restorer.equal_bytes,
            damaged=_merged(restorer.damaged),
            differing=_merged(differing),
            is_verified=self._options.verify,
            duration_s=time.monotonic() - self._started,
        )

    def _how_to_continue(self, target: Target, restorer: Restorer) -> Remedy:
        """Return what to do about an incomplete target. What precedes the place to continue from is on the disk."""
        try:
            target.finish()
        except TargetError as lost:
            remedy = Remedy(f"the target is incomplete: {lost.statement}")
            return remedy if lost.remedy is None else remedy.then(lost.remedy)
        block = restorer.continue_block()
        if not self._options.is_part:
            return Advice.CONTINUE_RESTORE(block=block)
        start = max(self._part.start, block * self._repository.block_size)
        return Advice.CONTINUE_RESTORE_OF_PART(offset=start, length=self._part.stop - start, stop=self._part.stop)


def _part(version: Version, options: RestoreOptions) -> range:
    """Return the requested bytes of the image.

    Raises:
        UsageError: the image does not have them.
    """
    if not options.is_part:
        return range(version.size_bytes)
    if options.continue_from is not None:
        raise UsageError(
            "only the restore of a whole image can continue from a block",
            remedy="give the offset and length of the missing part instead",
        )
    start = options.offset or 0
    stop = version.size_bytes if options.length is None else start + options.length
    if not 0 <= start < stop <= version.size_bytes:
        raise UsageError(
            f"has {version.size_bytes} bytes; {start} to {stop} is not a part of it",
            subject=f"version {version.uid}",
            remedy=Advice.RESTORE_PART(),
        )
    return range(start, stop)


def _merged(found: list[DamagedRange]) -> tuple[DamagedRange, ...]:
    """Return the ranges in order; neighbours with the same reason become one."""
    ordered: list[DamagedRange] = []
    for damage in sorted(found, key=lambda damage: damage.start):
        if ordered and (ordered[-1].stop, ordered[-1].reason) == (damage.start, damage.reason):
            ordered[-1] = dataclasses.replace(ordered[-1], stop=damage.stop)
        else:
            ordered.append(damage)
    return tuple(ordered)
