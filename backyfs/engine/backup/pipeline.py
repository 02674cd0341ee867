"""The pipeline of a backup: runs of blocks go in, committed pages of the block map come out.

    plan -> read, hash -> look up -> seal, put -> flush -> insert blobs -> commit pages
            worker        owner      worker       worker   owner           owner
                                                           (`committer`)

Each block's bytes stay in one of a fixed number of buffers until they are stored or found, so memory does
not depend on the image. The owner is the thread that calls `run`. A block counts as done when it is known or durable.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, groupby
from typing import TYPE_CHECKING

from backyfs.blocks import new_blob_uids, new_shelf
from backyfs.engine.backup.committer import Committer
from backyfs.engine.backup.tasks import Flushed, Hashed, Published, Result, Stored, Tasks
from backyfs.errors import BackyfsError, InterruptedByUser
from backyfs.geometry import BlockRun, block_count, block_length, block_runs, page_position
from backyfs.metadata.maps.blockmap import ABSENT, HOLE
from backyfs.metadata.records.blobs import find_blobs
from backyfs.model import BlockIndex, Deduplication
from backyfs.work.window import Window, default_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from backyfs.engine.backup.inherited import Inherited
    from backyfs.engine.backup.plan import Plan
    from backyfs.metadata.records.stats import BackupStatistics
    from backyfs.model import BlobId, BlobUid, Progress, SavedBlob, Version
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source
    from backyfs.work.job import Job

_RUN_BYTES = 4 << 20      # small blocks are read and stored in runs of so many bytes, and
_RUN_BLOCKS = 256         # of so many blocks: starting a task costs as much as several blocks of 4 KiB
_FEW_BLOCKS = 16          # a run of no more is mostly compression
_BUFFER_BYTES = 64 << 20  # in all buffers together, as far as enough of them fit
_LOOK_UP_RUNS = 4         # are looked up at once: a query for one run costs as much as hashing it
_FLUSH_BYTES = 64 << 20   # a flush begins when so much was stored since the last one, or
_FLUSH_BLOBS = 4096       # so many blobs, or
_FLUSH_S = 5.0            # when that was so long ago: a killed backup loses no more. The first flushes of a backup
_FIRST_FLUSH_S = 1.0      # follow each other sooner, because its progress moves with them
_FLUSHES_A_RUN = 4        # until they are as far apart as a quarter of the time so far
_COMMIT_S = 2.0           # so often pages are committed that are not complete: it can be continued from there


@dataclass(slots=True)
class _Unflushed:
    """Blobs that were put into the storage since the last flush began."""

    saved: list[SavedBlob] = field(default_factory=list)
    stored_bytes: int = 0
    since: float = field(default_factory=time.monotonic)

    def is_due(self, began_s: float) -> bool:
        """Tell whether to flush in a backup that began at this time on the monotonic clock."""
        now = time.monotonic()
        pause_s = min(_FLUSH_S, max(_FIRST_FLUSH_S, (now - began_s) / _FLUSHES_A_RUN))
        return bool(self.saved) and (
            self.stored_bytes >= _FLUSH_BYTES
            or len(self.saved) >= _FLUSH_BLOBS
            or now - self.since >= pause_s
        )


class Pipeline:
    """One backup's way from source to block map."""

    def __init__(
        self,
        repository: Repository,
        source: Source,
        version: Version,
        job: Job,
        statistics: BackupStatistics,
        progress: Progress,
        stop: Callable[[], bool],
        inherited: Inherited,
        plan: Plan | None,
    ) -> None:
        """Prepare to read what `plan` says, or everything; what is not read is as `inherited` has it."""
        self._repository = repository
        self._source = source
        self._version = version
        self._job = job
        self._statistics = statistics
        self._progress = progress
        self._stop = stop
        same_version = repository.deduplication is Deduplication.SAME_VERSION
        self._found_version = repository.blocks.encryption_version if same_version else None
        self._block_size = repository.block_size
        self._blocks = block_count(version.size_bytes, self._block_size)
        self._tasks = Tasks(source, repository.blocks, self._block_size)
        self._plan = plan
        self._inherited = inherited
        self._committer = Committer(repository, version, job, self._tasks, statistics, progress, inherited)
        self._run_blocks = max(1, min(_RUN_BLOCKS, _RUN_BYTES // self._block_size))
        # Small blocks are mostly Python's work, of which one thread does as much as several.
        self._workers = default_workers() - (1 if self._run_blocks > _FEW_BLOCKS else 0)
        self._buffers = self._make_buffers()
        self._reading = 0  # runs that workers read
        self._hashed: list[Hashed] = []  # runs that were read and not looked up
        self._began_s = time.monotonic()
        self._unflushed = _Unflushed()
        self._flushing = False
        self._known_bytes = 0  # that were read and need not be stored
        self._shelves = self._new_shelves()

    @property
    def blobs_repaired(self) -> int:
        """How many damaged blobs were stored again."""
        return self._committer.repairs.blobs

    def run(self) -> None:
        """Bring the whole source into the block map.

        Raises:
            BackyfsError: what ended it early; what was stored until then is in the block map, as far as
                storage and database still take it.
        """
        with Window[Result](self._workers) as window:
            try:
                self._feed(window)
                self._drain(window)
            except BackyfsError as error:
                with suppress(BackyfsError):  # the first error is the one to tell
                    self._salvage(window)
                if isinstance(error, InterruptedByUser):
                    self._check()  # tells of the version, where a worker could not
                raise
            self._committer.map.end()
            self._commit_pages()

    def _make_buffers(self) -> list[bytearray]:
        run_bytes = self._run_blocks * self._block_size
        count = max(self._workers + 1, min(4 * self._workers, _BUFFER_BYTES // run_bytes))
        return [bytearray(run_bytes) for _ in range(count)]

    def _new_shelves(self) -> Iterator[str]:
        # One for each worker: threads that make files in the same directory wait for each other.
        return cycle([new_shelf() for _ in range(self._workers)])

    # What is submitted, and what comes back.

    def _feed(self, window: Window[Result]) -> None:
        extents = self._source.data_extents() if self._plan is None else self._plan.extents()
        covered = 0
        for run in block_runs(extents, self._version.size_bytes, self._block_size, self._run_blocks):
            self._pass_over(covered, run.first)
            covered = run.first + run.count
            for part in self._not_committed(run):
                while not self._buffers:
                    self._handle(window)
                self._check()
                self._committer.map.expect(part)
                self._reading += 1
                window.submit(self._tasks.read, part, self._buffers.pop())
        self._pass_over(covered, self._blocks)

    def _not_committed(self, run: BlockRun) -> Iterator[BlockRun]:
        """Yield the parts of a run that an earlier run of this backup has not committed."""
        page_no, position = page_position(run.first)
        if page_no not in self._inherited.begun:
            yield run
            return
        states = self._inherited.committed(page_no)[position : position + run.count]
        first = 0
        for is_absent, group in groupby(states, lambda entry: entry == ABSENT):
            count = len(list(group))
            part = BlockRun(BlockIndex(run.first + first), count)
            first += count
            if is_absent:
                yield part
            else:
                self._progress.advance(self._bytes_of(part))

    def _drain(self, window: Window[Result]) -> None:
        while window.pending or self._unflushed.saved:
            self._check()
            if window.pending:
                self._handle(window)
            else:
                self._start_flush(window)

    def _salvage(self, window: Window[Result]) -> None:
        """Enter what was stored when the backup ended early, so that the next one finds it."""
        while window.pending:
            with suppress(BackyfsError):
                for result in window.results():
                    if not isinstance(result, Hashed):
                        self._settle(result)
        self._committer.enter_flushed(self._tasks.flush(self._unflushed.saved).saved)
        with suppress(BackyfsError):  # what would have to be stored again is left to a backup that continues this one
            self._commit_pages()
        self._committer.commit_begun()

    def _check(self) -> None:
        self._job.check()
        if self._stop():
            raise InterruptedByUser(
                f"interrupted: version {self._version.uid} stays incomplete; add --continue-version "
                f"{self._version.uid} to go on where it was, or start anew: what was stored is used again"
            )

    def _handle(self, window: Window[Result]) -> None:
        for result in window.results():
            if isinstance(result, Hashed):
                self._reading -= 1
                self._hashed.append(result)
            else:
                self._settle(result)
        if len(self._hashed) >= _LOOK_UP_RUNS or not self._reading:
            self._look_up(window)
        if self._unflushed.is_due(self._began_s) and not self._flushing:
            self._start_flush(window)
        for page in self._committer.fresh.take():
            window.submit(self._tasks.publish, self._committer.fresh, page)
        if self._committer.begun_age_s >= _COMMIT_S:
            self._committer.commit_begun()

    def _settle(self, result: Stored | Flushed | Published) -> None:
        if isinstance(result, Stored):
            self._buffers.append(result.buffer)
            self._unflushed.saved += result.saved
            self._unflushed.stored_bytes += sum(blob.stored_size for blob in result.saved)
        elif isinstance(result, Published):
            if result.page is not None:
                self._committer.fresh.note_put(result.page)
        else:
            self._flushing = False
            self._committer.enter_flushed(result.saved)
            self._commit_pages()

    def _start_flush(self, window: Window[Result]) -> None:
        saved, self._unflushed = self._unflushed.saved, _Unflushed()
        self._flushing = True
        self._shelves = self._new_shelves()
        self._committer.fresh.begin_flush()
        window.submit_beside(self._tasks.flush, saved)

    # What the owner does with it.

    def _look_up(self, window: Window[Result]) -> None:
        """Find each block that was hashed: zeros, in the database, on its way there, or new."""
        hashed, self._hashed = self._hashed, []
        known = self._find(
            fingerprint
            for result in hashed
            for fingerprint in result.fingerprints
            if fingerprint is not None and not self._committer.is_coming(fingerprint)
        )
        before = self._known_bytes
        for result in hashed:
            new = self._sort(result, known)
            if new:
                window.submit(self._tasks.store, result, new)
            else:
                self._buffers.append(result.buffer)
        # What is stored counts once it is durable: reading and sealing run ahead of a slow storage.
        self._progress.advance(self._known_bytes - before)
        self._commit_pages()

    def _commit_pages(self) -> None:
        self._committer.commit_pages(self._check)

    def _find(self, fingerprints: Iterable[bytes]) -> dict[bytes, BlobId]:
        is_off = self._repository.deduplication is Deduplication.OFF
        if is_off and not self._committer.repairs.are_needed:
            return {}
        wanted = set(fingerprints)
        if not wanted:
            return {}
        with self._repository.database.read() as connection:
            self._committer.repairs.look_for(connection, wanted)
            if is_off:
                return {}
            return find_blobs(connection, wanted, encryption_version=self._found_version)

    def _sort(self, result: Hashed, known: dict[bytes, BlobId]) -> list[tuple[int, BlobUid]]:
        """Enter the blocks of a run that are known; return those that are to be stored, and as what."""
        counts, repairs = self._statistics, self._committer.repairs
        uids = iter(new_blob_uids(next(self._shelves), len(result.fingerprints)))
        new = []
        for position, fingerprint in enumerate(result.fingerprints):
            index = BlockIndex(result.run.first + position)
            size = block_length(index, self._version.size_bytes, self._block_size)
            damaged = [] if fingerprint is None else repairs.take(fingerprint, size)
            counts.blocks_read += 1
            counts.bytes_read += size
            if fingerprint is None:
                self._enter_known(index, HOLE, size)
                counts.blocks_sparse += 1
                counts.bytes_sparse += size
            elif (blob_id := known.get(fingerprint)) is not None:
                self._enter_known(index, blob_id, size)
                counts.blocks_deduplicated += 1
                counts.bytes_deduplicated += size
            elif self._committer.join(index, fingerprint):
                counts.blocks_deduplicated += 1
                counts.bytes_deduplicated += size
            else:
                uid = next(uids)
                new.append((position, uid))
                self._committer.announce(index, fingerprint, uid)
                if damaged and self._repository.deduplication is not Deduplication.OFF:
                    repairs.begin(uid, damaged.pop(0))
                counts.blocks_written += 1
                counts.bytes_written += size
            for blob in damaged:  # each gets an object of its own, as it had
                uid = new_blob_uids(next(self._shelves), 1)[0]
                new.append((position, uid))
                repairs.begin(uid, blob)
        return new

    def _enter_known(self, index: BlockIndex, entry: BlobId | int, size: int) -> None:
        self._committer.map.enter(index, entry)
        self._known_bytes += size

    def _pass_over(self, first: int, stop: int) -> None:
        """Count blocks that are not read, and are zeros unless they are as in the base."""
        if first < stop and (self._plan is None or not self._plan.has_base):
            size = self._bytes_of(BlockRun(BlockIndex(first), stop - first))
            self._statistics.blocks_sparse += stop - first
            self._statistics.bytes_sparse += size
            self._progress.advance(size)

    def _bytes_of(self, run: BlockRun) -> int:
        first = run.first * self._block_size
        return min(run.count * self._block_size, self._version.size_bytes - first)
