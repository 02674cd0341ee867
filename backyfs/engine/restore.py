"""Restore a version to a file or a block device: exact bytes, each block checked before it is written.

A damaged block is left out and reported with its range; everything else is restored.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.blocks import load_block
from backyfs.engine.job import Job
from backyfs.engine.window import Window, default_workers
from backyfs.errors import IntegrityError, InterruptedByUser, StorageError, TargetError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count
from backyfs.metadata.blobs import load_blobs
from backyfs.metadata.blockmap import ABSENT, HOLE, page_entries
from backyfs.model import BlobId, BlockIndex, DamagedRange, NoProgress, PageNumber
from backyfs.sources import local_path
from backyfs.sources.target import FileTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.model import Blob, Progress, Version
    from backyfs.repository import Repository

_RUN_BYTES = 4 << 20  # small blocks are restored in runs of so many bytes, and
_RUN_BLOCKS = 256     # of so many blocks
_SQLITE_COMPANIONS = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What a restore did."""

    version: Version
    target: str
    bytes_written: int
    damaged: tuple[DamagedRange, ...]  # in order; these bytes were not written
    duration_s: float


@dataclass(frozen=True, slots=True)
class _Part:
    """A block of the image, and the blob that holds it; None where its row is gone."""

    index: BlockIndex
    blob: Blob | None


@dataclass(frozen=True, slots=True)
class _Done:
    """What became of a run: the plain bytes written, and what could not be had."""

    written_bytes: int
    passed_bytes: int
    damaged: list[DamagedRange]


def restore(
    repository: Repository,
    version: Version,
    target_uri: str,
    *,
    replace: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> RestoreReport:
    """Write the image of a version to `target_uri`, a path or `file://` URI of a file or block device.

    Raises:
        TargetError: the target exists and `replace` is not set, is too small, is in use, belongs to the
            repository, or cannot be written.
        InterruptedByUser: `stop` said so; the target is incomplete.
        DatabaseError: the block map cannot be read.
    """
    started = time.monotonic()
    path = local_path(target_uri)
    _refuse_own_paths(repository, path)
    with Job(repository.database, f"restore {version.uid}") as job:
        job.hold(version.id)
        target = FileTarget(path, version.size_bytes, replace=replace)
        try:
            restorer = _Restorer(repository, version, target, job, progress or NoProgress(), stop)
            restorer.run()
            target.finish()
        finally:
            target.close()
    return RestoreReport(
        version=version,
        target=path,
        bytes_written=restorer.written_bytes,
        damaged=tuple(sorted(restorer.damaged, key=lambda damage: damage.start)),
        duration_s=time.monotonic() - started,
    )


def _refuse_own_paths(repository: Repository, path: str) -> None:
    wanted = os.path.realpath(path)
    for own in repository.own_paths:
        companions = [own + suffix for suffix in _SQLITE_COMPANIONS]
        if wanted in {own, *companions} or wanted.startswith(own + os.sep):
            raise TargetError(f"{path} belongs to the repository itself; name a target outside of it")


class _Restorer:
    """One restore under way. Owned by the thread that calls `run`."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        target: FileTarget,
        job: Job,
        progress: Progress,
        stop: Callable[[], bool],
    ) -> None:
        self._repository = repository
        self._version = version
        self._target = target
        self._job = job
        self._progress = progress
        self._stop = stop
        self._geometry = (version.size_bytes, repository.block_size)
        self._blocks = block_count(*self._geometry)
        self.written_bytes = 0
        self.damaged: list[DamagedRange] = []

    def run(self) -> None:
        workers = default_workers()
        self._progress.start(f"Restoring {self._version.name}", self._version.size_bytes)
        try:
            with Window[_Done](workers) as window:
                for run in self._runs():
                    while window.pending >= 2 * workers:
                        self._take(window)
                    self._check()
                    window.submit(self._restore_run, run)
                while window.pending:
                    self._take(window)
        finally:
            self._progress.stop()

    def _check(self) -> None:
        self._job.check()
        if self._stop():
            raise InterruptedByUser("interrupted: the target is incomplete; restore it again with --force")

    def _take(self, window: Window[_Done]) -> None:
        for done in window.results():
            self.written_bytes += done.written_bytes
            self.damaged += done.damaged
            self._progress.advance(done.passed_bytes)

    def _runs(self) -> Iterator[list[_Part]]:
        """Yield the blocks that have a blob, in runs of bounded size; settle the others on the way."""
        limit = max(1, min(_RUN_BLOCKS, _RUN_BYTES // self._repository.block_size))
        for number in range(page_count(self._blocks)):
            page_no = PageNumber(number)
            with self._repository.database.read() as connection:
                entries = page_entries(connection, self._version, page_no, self._blocks)
                blobs = load_blobs(connection, {BlobId(entry) for entry in entries if entry > HOLE})
            parts: list[_Part] = []
            for position, entry in enumerate(entries):
                index = BlockIndex(number * PAGE_ENTRIES + position)
                if entry <= HOLE:
                    self._settle(index, entry)
                    continue
                parts.append(_Part(index, blobs.get(BlobId(entry))))
                if len(parts) == limit:
                    yield parts
                    parts = []
            if parts:
                yield parts

    def _settle(self, index: BlockIndex, entry: int) -> None:
        start, length = self._range(index)
        if entry == ABSENT:
            self.damaged.append(
                DamagedRange(start=start, stop=start + length, reason="never backed up: the version is incomplete")
            )
        else:
            self._target.write_zeros(start, length)
        self._progress.advance(length)

    def _restore_run(self, run: list[_Part]) -> _Done:
        """Load the blocks of a run and write those that are whole. Runs in a worker thread."""
        written = passed = 0
        damaged = []
        for part in run:
            start, length = self._range(part.index)
            passed += length
            try:
                block = self._load(part, length)
            except (IntegrityError, StorageError) as error:
                damaged.append(DamagedRange(start=start, stop=start + length, reason=str(error)))
                continue
            self._target.write(start, block)
            written += length
        return _Done(written, passed, damaged)

    def _load(self, part: _Part, length: int) -> bytes:
        if part.blob is None:
            raise IntegrityError("the block map names a blob that the database does not have")
        if part.blob.size != length:
            raise IntegrityError(f"blob {part.blob.uid} has {part.blob.size} bytes where the image has {length}")
        return load_block(self._repository.blocks, part.blob)

    def _range(self, index: BlockIndex) -> tuple[int, int]:
        return index * self._repository.block_size, block_length(index, *self._geometry)
