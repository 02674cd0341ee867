"""Write a version to a target in worker threads; each block is checked before it is written.

A block that cannot be loaded is left out, and everything else is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import DAMAGE
from backyfs.geometry import block_count
from backyfs.images.parts import PartLoader
from backyfs.images.runs import GAP_BYTES, GapPart, ImageRuns
from backyfs.model import DamagedRange
from backyfs.work.parallel import at_most
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.engine.restore.readback import ReadBack
    from backyfs.images.runs import BlockPart, ImageRun
    from backyfs.model import BlobId, Version
    from backyfs.repository import Repository
    from backyfs.targets.protocol import Target
    from backyfs.work.run import Run

_ABSENT = "never backed up: the version is incomplete"


@dataclass(slots=True)
class _Done:
    """The result of a run."""

    run: ImageRun
    written_bytes: int
    equal_bytes: int
    damaged: list[DamagedRange]
    suspects: list[BlobId]  # the blobs of damaged ranges


class Restorer:
    """A restore in progress. Owned by the thread that calls `restore`."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        target: Target,
        *,
        wanted: range,
        skips_holes: bool,
        present: ReadBack | None,
        run: Run,
    ) -> None:
        """Prepare to write the bytes `wanted`, without holes if `skips_holes`, and only what `present` lacks."""
        self._version = version
        self._loader = PartLoader(repository.blocks)
        self._block_size = repository.block_size
        self._target = target
        self._writing = at_most(target.parallel)
        self._wanted = wanted
        self._skips_holes = skips_holes
        self._present = present
        self._run = run
        self._width = repository.width
        self._runs = ImageRuns(
            repository,
            version,
            blocks_at_once=self._width.blocks,
            gap_bytes=None if target.begins_empty else GAP_BYTES,
        )
        self._pending: dict[int, ImageRun] = {}  # runs in progress by their first blocks, in order
        self._next_block = wanted.start // self._block_size  # every block before it is done or in progress
        self.written_bytes = 0
        self.equal_bytes = 0
        self.damaged: list[DamagedRange] = []
        self.suspects: set[BlobId] = set()  # blobs that could not be loaded

    def restore(self) -> None:
        """Write everything.

        Raises:
            TargetError: the target cannot be written or read.
            StorageError: the storage does not work; nothing is known to be damaged.
            InterruptedByUser: the run was asked to stop.
            DatabaseError: the block map cannot be read.
            JobLostError: another command considered this one dead.
        """
        workers = self._width.workers
        step = self._run.step(f"Restoring {self._version.name}", len(self._wanted))
        with step, Window[_Done](workers) as window:
            for done in window.map(self._restore_run, self._runs_for_workers(), most=2 * workers):
                self._settle(done)

    def continue_block(self) -> int:
        """Return the number of the block to continue from: every block before it is written, and not damaged."""
        first = next(iter(self._pending), self._next_block)
        for damage in self.damaged:
            first = min(first, damage.start // self._block_size)
        return max(0, min(first, self._runs.blocks - 1))

    def _runs_for_workers(self) -> Iterator[ImageRun]:
        for run in self._runs.within(self._wanted):
            self._run.check()
            self._pending[run.first] = run
            self._next_block = block_count(run.stop, self._block_size)
            if run.has_blocks or not self._target.begins_empty:
                yield run
            else:  # nothing to do; a task for each of many gaps would take longer than everything else
                self._settle(self._restore_run(run))

    def _settle(self, done: _Done) -> None:
        del self._pending[done.run.first]
        self.written_bytes += done.written_bytes
        self.equal_bytes += done.equal_bytes
        self.damaged += done.damaged
        self.suspects.update(done.suspects)
        self._run.advance(done.run.length)

    def _restore_run(self, run: ImageRun) -> _Done:
        """Write the parts of a run that can be loaded. Runs in a worker thread."""
        done = _Done(run, 0, 0, [], [])
        for part in run.parts:
            if isinstance(part, GapPart):
                self._restore_gap(part, done)
                continue
            try:
                if self._present is not None and self._present.has_block(part):
                    done.equal_bytes += part.length
                    continue
                block = self._loader.load(part)
            except DAMAGE as error:
                self._leave_damaged(part, str(error), done)
                if part.blob is not None:
                    done.suspects.append(part.blob.id)
                continue
            with self._writing:
                self._target.write(part.start, block)
            done.written_bytes += part.length
        return done

    def _restore_gap(self, gap: GapPart, done: _Done) -> None:
        if gap.is_absent:
            self._leave_damaged(gap, gap.fact or _ABSENT, done)
        elif self._skips_holes:
            self._target.leave(gap.start, gap.length)
        elif self._present is None:
            self._write_zeros(gap.start, gap.length)
        elif self._present.has_zeros(gap.start, gap.length):
            done.equal_bytes += gap.length
        else:
            self._write_missing_zeros(gap, self._present, done)

    def _write_missing_zeros(self, gap: GapPart, present: ReadBack, done: _Done) -> None:
        stop = gap.start + gap.length
        for start in range(gap.start, stop, self._block_size):
            length = min(self._block_size, stop - start)
            if present.has_zeros(start, length):
                done.equal_bytes += length
            else:
                self._write_zeros(start, length)
                done.written_bytes += length

    def _write_zeros(self, start: int, length: int) -> None:
        with self._writing:
            self._target.write_zeros(start, length)

    def _leave_damaged(self, part: BlockPart | GapPart, reason: str, done: _Done) -> None:
        done.damaged.append(DamagedRange(start=part.start, stop=part.start + part.length, reason=reason))
        self._target.leave(part.start, part.length)
