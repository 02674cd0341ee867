"""The pipeline of a backup: runs of blocks go in, committed pages of the block map come out.

    plan -> read, hash -> look up -> seal, put -> flush -> insert blobs -> commit pages
            worker        owner      worker       worker   owner           owner
                          `lookup`                `flusher`        `committer`

The bytes of a block stay in one of a fixed number of buffers until the block is stored or found, so memory does not
depend on the image. The owner is the thread that calls `store`. A block counts as done when it is known or durable.

If the storage is behind a network, sealing and putting are two tasks. The first frees the buffer, and many of the
second wait for the network at the same time. The bytes that wait are limited.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING

from backyfs.engine.backup.committer import Committer
from backyfs.engine.backup.flusher import Flusher
from backyfs.engine.backup.lookup import Lookup
from backyfs.engine.backup.tasks import (
    FlushedBlobs,
    HashedRun,
    PublishedPage,
    Result,
    SealedRun,
    StoredRun,
    Tasks,
)
from backyfs.errors import BackyfsError, InterruptedByUser
from backyfs.geometry import BlockRun, block_count, block_runs, page_position
from backyfs.metadata.maps.blockmap import ABSENT
from backyfs.metadata.records.stats import BackupStatistics
from backyfs.model import BlockIndex
from backyfs.work.width import processors
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.engine.backup.inherited import InheritedMap
    from backyfs.engine.backup.plan import Plan
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source
    from backyfs.work.run import Run

_FEW_BLOCKS = 16          # a run of at most this many is mostly compression
_BUFFER_BYTES = 64 << 20  # in all buffers together, unless there would be too few
_SMALL_BUFFER_BYTES = 16 << 20  # the same if blocks leave their buffers before they are put
_LOOK_UP_RUNS = 4         # looked up at once: a query for one run costs as much as hashing it
_SEALED_BYTES = 64 << 20  # sealed and not yet put, with a storage behind a network; more is sealed when less is left


class Pipeline:
    """The way of one backup from source to block map."""

    def __init__(
        self,
        repository: Repository,
        source: Source,
        version: Version,
        run: Run,
        plan: Plan,
        inherited: InheritedMap,
    ) -> None:
        """Prepare to read the blocks of `plan`; `inherited` has the others."""
        self._source = source
        self._version = version
        self._run = run
        self._plan = plan
        self._inherited = inherited
        self._limits = repository.limits
        self._block_size = repository.block_size
        self._blocks = block_count(version.size_bytes, self._block_size)
        width = repository.width
        self._run_blocks = width.blocks
        self._waiting = width.waiting
        self._sealed_bytes = 0  # in all tasks that wait for the network
        # Small blocks are mostly work for Python, where several threads are no faster than one.
        self._workers = max(1, width.workers - (1 if self._run_blocks > _FEW_BLOCKS else 0))
        if self._waiting is not None:
            self._workers = min(self._workers, processors() + 1)
        self._buffers = self._make_buffers()
        self._reading = 0  # runs that workers are reading
        self._hashed: list[HashedRun] = []  # runs that were read but not looked up
        self.statistics = BackupStatistics()
        self._tasks = Tasks(source, repository.blocks, self._block_size)
        self._flusher = Flusher(repository.limits, self._workers)
        self._committer = Committer(repository, version, run, self._tasks, self.statistics, inherited)
        self._lookup = Lookup(repository, version, self.statistics, self._committer, self._flusher)
        if plan.has_base:
            self.statistics.blocks_sparse = len(plan.zeros)
            self.statistics.bytes_sparse = plan.bytes_of(plan.zeros)

    @property
    def blobs_repaired(self) -> int:
        """How many damaged blobs were stored again."""
        return self._committer.repairs.blobs

    def store(self) -> None:
        """Enter the whole source in the block map.

        Raises:
            BackyfsError: what ended it early. Blocks stored until then are in the block map, if storage and database
                still work.
        """
        with Window[Result](self._workers, self._waiting or 1) as window:
            try:
                self._feed(window)
                self._drain(window)
            except BackyfsError as error:
                with suppress(BackyfsError):  # the first error is the one to report
                    self._salvage(window)
                if isinstance(error, InterruptedByUser):
                    self._run.check()  # this error names the version, unlike that of a worker
                raise
            self._committer.map.end()
            self._committer.commit_pages()

    def _make_buffers(self) -> list[bytearray]:
        run_bytes = self._run_blocks * self._block_size
        if self._waiting is not None:
            count = max(self._workers + 1, min(self._waiting, _SMALL_BUFFER_BYTES // run_bytes))
        else:
            count = max(self._workers + 1, min(4 * self._workers, _BUFFER_BYTES // run_bytes))
        return [bytearray(run_bytes) for _ in range(count)]

    # What is submitted, and what comes back.

    def _feed(self, window: Window[Result]) -> None:
        covered = 0
        extents = self._plan.extents(self._source)
        for run in block_runs(extents, self._version.size_bytes, self._block_size, self._run_blocks):
            self._skip(covered, run.first)
            covered = run.first + run.count
            for part in self._not_committed(run):
                while not self._buffers or self._sealed_bytes >= _SEALED_BYTES:
                    self._handle(window)
                self._run.check()
                self._committer.map.expect(part)
                self._reading += 1
                window.submit(self._tasks.read, part, self._buffers.pop())
        self._skip(covered, self._blocks)

    def _not_committed(self, run: BlockRun) -> Iterator[BlockRun]:
        """Yield the parts of a run that an earlier run of this backup has not committed."""
        page_no, position = page_position(run.first)
        if page_no not in self._inherited.own_pages:
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
                self._run.advance(self._bytes_of(part))

    def _drain(self, window: Window[Result]) -> None:
        while window.pending or self._flusher.has_waiting:
            self._run.check()
            if window.pending:
                self._handle(window)
            else:
                self._start_flush(window)

    def _salvage(self, window: Window[Result]) -> None:
        """Record what was stored when the backup ended early, so that the next one can use it."""
        self._tasks.give_up()
        while window.pending:
            with suppress(BackyfsError):
                for result in window.results():
                    if not isinstance(result, HashedRun | SealedRun):
                        self._settle(result)
        self._committer.enter_flushed(self._tasks.flush(self._flusher.begin()).saved)
        with suppress(BackyfsError):  # a backup that continues this one stores what is missing
            self._committer.commit_pages()
        self._committer.commit_partial()

    def _handle(self, window: Window[Result]) -> None:
        for result in window.results():
            if isinstance(result, HashedRun):
                self._reading -= 1
                self._hashed.append(result)
            elif isinstance(result, SealedRun):
                self._put(window, result)
            else:
                self._settle(result)
        if len(self._hashed) >= _LOOK_UP_RUNS or not self._reading:
            self._look_up(window)
        if self._flusher.is_due:
            self._start_flush(window)
        for page in self._committer.fresh.take():
            window.submit(self._tasks.publish, self._committer.fresh, page)
        if self._committer.partial_age_s >= self._limits.commit_s:
            self._committer.commit_partial()

    def _settle(self, result: StoredRun | FlushedBlobs | PublishedPage) -> None:
        if isinstance(result, StoredRun):
            if result.buffer is not None:
                self._buffers.append(result.buffer)
            self._sealed_bytes -= result.weight
            self._flusher.add(result.saved)
        elif isinstance(result, PublishedPage):
            if result.page is not None:
                self._committer.fresh.note_put(result.page)
        else:
            self._flusher.end()
            self._committer.enter_flushed(result.saved)
            self._committer.commit_pages()

    def _put(self, window: Window[Result], sealed: SealedRun) -> None:
        self._buffers.append(sealed.buffer)
        self._sealed_bytes += sealed.weight
        window.submit_waiting(self._tasks.put, sealed)

    def _start_flush(self, window: Window[Result]) -> None:
        saved = self._flusher.begin()
        self._committer.fresh.begin_flush()
        window.submit_beside(self._tasks.flush, saved)

    # In the thread of the owner.

    def _look_up(self, window: Window[Result]) -> None:
        hashed, self._hashed = self._hashed, []
        before = self._lookup.known_bytes
        for result, new in self._lookup.sort(hashed):
            if new:
                window.submit(self._tasks.store if self._waiting is None else self._tasks.seal, result, new)
            else:
                self._buffers.append(result.buffer)
        # New blocks count once they are durable, because reading and sealing run ahead of a slow storage.
        self._run.advance(self._lookup.known_bytes - before)
        self._committer.commit_pages()

    def _skip(self, first: int, stop: int) -> None:
        """Count blocks that are not read: without a base, they are zeros."""
        if first < stop and not self._plan.has_base:
            size = self._bytes_of(BlockRun(BlockIndex(first), stop - first))
            self.statistics.blocks_sparse += stop - first
            self.statistics.bytes_sparse += size
            self._run.advance(size)

    def _bytes_of(self, run: BlockRun) -> int:
        first = run.first * self._block_size
        return min(run.count * self._block_size, self._version.size_bytes - first)
