"""Restore a version, or a part of it, to a file, a block device or a stream: exact bytes, checked before written.

A damaged block is left out and reported with its range; everything else is restored. A restore that does not come
to its end leaves an incomplete target, and nothing else; it says from which block on it can be continued.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.engine.catalog.publish import catalog_kept
from backyfs.engine.damage.suspects import check_suspects
from backyfs.engine.restore.readback import ReadBack
from backyfs.engine.restore.restorer import Restorer
from backyfs.engine.restore.verification import Verification
from backyfs.errors import BackyfsError, TargetError, UsageError
from backyfs.geometry import block_count
from backyfs.host.loops import find_loop
from backyfs.host.occupants import lock, use_of
from backyfs.ownfiles import find_own
from backyfs.targets.opening import STDOUT, open_target, target_path
from backyfs.targets.protocol import ReadableTarget
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

    replace: bool = False             # a target that exists may be overwritten
    sparse: bool = False              # leave what the target has where the image has holes
    continue_from: int | None = None  # block to begin with: those before it are in the target, which exists
    offset: int | None = None         # bytes of the image: only a part of it, to the same place of the target, the
    length: int | None = None         # rest of which stays; None for both: the image. One alone: from 0, to its end
    differential: bool = False        # read the target, which exists, and write what differs
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
    target: str
    part: range         # of the bytes of the image: what was wanted of it
    bytes_written: int  # without holes; differential: with the zeros that the target did not have
    bytes_equal: int    # differential: what the target had already, zeros included
    damaged: tuple[DamagedRange, ...]    # in order; these bytes were not written
    differing: tuple[DamagedRange, ...]  # in order; these were not read back as they were written
    is_verified: bool                    # everything else was
    duration_s: float


def restore(
    repository: Repository,
    version: Version,
    target_uri: str,
    *,
    replace: bool = False,
    options: RestoreOptions | None = None,
    control: Control = UNATTENDED,
) -> RestoreReport:
    """Write the image of a version to what `target_uri` names; see `open_target`.

    With `replace`, here or in the options, a target that exists may be overwritten. At the end everything is on the
    disk, unless the options say otherwise.

    Raises:
        UsageError: the options do not fit the target or the version.
        TargetError: the target exists and `replace` is not set, is too small, is in use, belongs to the
            repository, cannot be written, or does not reach the disk.
        ReaderGoneError: it is a stream that nobody reads any more.
        InterruptedByUser: `control` asked to stop; the target is incomplete.
        DatabaseError: the block map cannot be read.
    """
    chosen = options or RestoreOptions()
    if replace:
        chosen = dataclasses.replace(chosen, replace=True)
    restoring = _Restore(repository, version, target_uri, chosen)
    command = f"restore {version.uid}"
    with catalog_kept(repository, control), Job(repository.database, command, only_reads=True) as job:
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
        self._path = target_path(target_uri)
        self._options = options
        self._first_block = options.continue_from or 0
        self._first_byte = self._first_block * repository.block_size
        self._part = _part(version, options)
        self._check()

    def _check(self) -> None:
        blocks = block_count(self._version.size_bytes, self._repository.block_size)
        if self._first_block >= max(1, blocks):
            raise UsageError(
                f"block {self._first_block} lies beyond the end: version {self._version.uid} has {blocks} blocks, "
                "numbered from 0"
            )
        if self._path is None:
            self._refuse_what_needs_a_file()
            return
        self._refuse_own(self._path, self._path)
        if os.path.isfile(self._path) and os.path.getsize(self._path) < self._first_byte:
            raise TargetError(
                f"{self._path} has no block {self._first_block}: it is {os.path.getsize(self._path)} bytes long; "
                "continue from an earlier block, or restore it anew with --force"
            )

    def _refuse_what_needs_a_file(self) -> None:
        if self._options.differential or self._options.verify:
            raise UsageError(f"{self._uri} cannot be read, as --differential and --verify do; name a file or device")
        if self._uri == STDOUT and self._options.continue_from is not None:
            raise UsageError("the standard output has nothing to continue; leave out --continue-from, or name a file")

    def open_target(self, control: Control) -> Target:
        """Open the target, to begin with or to go on."""
        kept_bytes = self._first_byte if self._continues() else None
        size_bytes = self._version.size_bytes
        if self._options.is_part:
            size_bytes = self._needed_bytes()
        replaces_part = self._options.is_part and self._options.replace and os.path.exists(self._path or "")
        if self._options.differential or replaces_part:
            kept_bytes = size_bytes
        return open_target(
            self._uri,
            size_bytes,
            self._repository.config,
            replace=self._options.replace,
            kept_bytes=kept_bytes,
            start=self._part.start,
            stop=control.stop,
            syncs=self._options.syncs,
            examine=self._examine,
        )

    def _examine(self, fd: int) -> None:
        """Refuse an open target that others use, and keep out those that come later."""
        if self._path is None:  # a standard output that the shell has opened; it may go on using it, so no lock
            self._refuse_own(f"/proc/self/fd/{fd}", "the standard output")
            self._refuse_used(use_of(fd), "the standard output")
        else:
            self._refuse_used(use_of(fd) or lock(fd), self._path)

    def _refuse_own(self, path: str, shown: str) -> None:
        if find_own(path, self._repository.own_paths) is not None:
            raise TargetError(f"{shown} belongs to the repository itself; name a target outside of it")
        loop = find_loop(os.path.realpath(path))
        if loop is not None:
            self._refuse_own(loop.backing_file, shown)

    @staticmethod
    def _refuse_used(use: str | None, shown: str) -> None:
        if use is not None:
            raise TargetError(f"{shown} is in use: {use}")

    def _continues(self) -> bool:
        """Return whether the target exists. From block 0 it need not: nothing of it is kept, and backy2 made it."""
        if self._options.continue_from is None:
            return False
        return self._first_block > 0 or os.path.exists(self._path or "")

    def _needed_bytes(self) -> int:
        """Return how large the target of a part has to be: a file that is larger than the image stays so."""
        if self._path is None or not os.path.exists(self._path):
            return self._version.size_bytes
        if os.path.isfile(self._path):
            return max(self._version.size_bytes, os.path.getsize(self._path))
        return self._part.stop

    def write_and_verify(self, target: Target, run: Run) -> RestoreReport:
        """Do all of it."""
        read_back = ReadBack(self._repository.blocks, target) if isinstance(target, ReadableTarget) else None
        restorer = Restorer(
            self._repository,
            self._version,
            target,
            wanted=range(max(self._part.start, self._first_byte), self._part.stop),
            skips_holes=self._options.sparse,
            present=read_back if self._options.differential else None,
            run=run,
        )
        if isinstance(target, ReadableTarget) and self._options.differential:
            target.drop_cache()  # what the kernel remembers of a target that failed to be written is not on its disk
        try:
            restorer.restore()
        except BackyfsError as error:
            if self._path is not None:
                error.args = (f"{error}; the target is incomplete: {self._how_to_continue(target, restorer)}",)
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
                run=run.saying("interrupted: everything is written, and not all of it was verified"),
            )
            verification.verify()
            differing = verification.differing
        check_suspects(self._repository, restorer.suspects, run)
        return self._report(restorer, differing)

    def _report(self, restorer: Restorer, differing: list[DamagedRange]) -> RestoreReport:
        return RestoreReport(
            version=self._version,
            target=self._path or self._uri,
            part=self._part,
            bytes_written=restorer.written_bytes,
            bytes_equal=restorer.equal_bytes,
            damaged=_merged(restorer.damaged),
            differing=_merged(differing),
            is_verified=self._options.verify,
            duration_s=time.monotonic() - self._started,
        )

    def _how_to_continue(self, target: Target, restorer: Restorer) -> str:
        """Return what to do about a target that is incomplete. What it is to be continued from is on the disk."""
        try:
            target.finish()
        except TargetError as lost:
            return str(lost)
        block = restorer.continue_block()
        if not self._options.is_part:
            return f"add --continue-from {block} to go on"
        start = max(self._part.start, block * self._repository.block_size)
        return f"add --force --offset {start} --length {self._part.stop - start} to go on"


def _part(version: Version, options: RestoreOptions) -> range:
    """Return the bytes of the image that are wanted.

    Raises:
        UsageError: the image does not have them.
    """
    if not options.is_part:
        return range(version.size_bytes)
    if options.continue_from is not None:
        raise UsageError("--continue-from is for whole images; say where to go on with --offset and --length")
    start = options.offset or 0
    stop = version.size_bytes if options.length is None else start + options.length
    if not 0 <= start < stop <= version.size_bytes:
        raise UsageError(
            f"version {version.uid} has {version.size_bytes} bytes, and {start} to {stop} are no part of them; choose "
            "--offset and --length within it"
        )
    return range(start, stop)


def _merged(found: list[DamagedRange]) -> tuple[DamagedRange, ...]:
    """Return ranges in order, neighbours of the same reason as one."""
    ordered: list[DamagedRange] = []
    for damage in sorted(found, key=lambda damage: damage.start):
        if ordered and (ordered[-1].stop, ordered[-1].reason) == (damage.start, damage.reason):
            ordered[-1] = dataclasses.replace(ordered[-1], stop=damage.stop)
        else:
            ordered.append(damage)
    return tuple(ordered)
