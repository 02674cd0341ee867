"""Read a target back after a restore, and find where it differs from what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.errors import DAMAGE, InterruptedByUser
from backyfs.images.runs import GAP_BYTES, GapPart, ImageRun, ImageRuns
from backyfs.model import DamagedRange
from backyfs.ranges import ranges
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.engine.restore.readback import ReadBack
    from backyfs.images.runs import BlockPart
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.work.run import Run

_DIFFERS = "the target has other bytes than were written to it"


class Verification:
    """A target that is read back. Owned by the thread that calls `verify`."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        present: ReadBack,
        *,
        wanted: range,
        without: list[DamagedRange],
        skips_holes: bool,
        run: Run,
    ) -> None:
        """Prepare to read back the bytes `wanted`, except for `without` and, if `skips_holes`, holes."""
        self._version = version
        self._block_size = repository.block_size
        self._present = present
        self._wanted = wanted
        self._without = ranges((damage.start, damage.stop) for damage in without)
        self._skips_holes = skips_holes
        self._run = run
        self._width = repository.width
        self._runs = ImageRuns(repository, version, blocks_at_once=self._width.blocks, gap_bytes=GAP_BYTES)
        self.differing: list[DamagedRange] = []  # in no order

    def verify(self) -> None:
        """Read everything back, from the disk if possible.

        Raises:
            TargetError: the target cannot be read.
            InterruptedByUser: the run was asked to stop.
            DatabaseError: the block map cannot be read.
            JobLostError: another command considered this one dead.
        """
        workers = self._width.workers
        self._present.drop_cache()
        step = self._run.step(f"Verifying {self._version.name}", len(self._wanted))
        try:
            with step, Window[tuple[ImageRun, list[DamagedRange]]](workers) as window:
                for run, differing in window.map(self._verify_run, self._checked_runs(), most=2 * workers):
                    self.differing += differing
                    self._run.advance(run.length)
        except InterruptedByUser:
            self._run.check()  # its message says what is done; a worker does not know that
            raise

    def _checked_runs(self) -> Iterator[ImageRun]:
        for run in self._runs.within(self._wanted):
            self._run.check()
            yield run

    def _verify_run(self, run: ImageRun) -> tuple[ImageRun, list[DamagedRange]]:
        """Return what differs in a run. Runs in a worker thread."""
        differing: list[DamagedRange] = []
        for part in run.parts:
            if isinstance(part, GapPart):
                differing += self._differing_zeros(part)
            elif part.start not in self._without and (fault := self._fault_of(part)) is not None:
                differing.append(_range(part.start, part.length, fault))
        return run, differing

    def _differing_zeros(self, gap: GapPart) -> list[DamagedRange]:
        if gap.is_absent or self._skips_holes or self._present.has_zeros(gap.start, gap.length):
            return []
        stop = gap.start + gap.length
        pieces = ((start, min(self._block_size, stop - start)) for start in range(gap.start, stop, self._block_size))
        return [_range(*piece, _DIFFERS) for piece in pieces if not self._present.has_zeros(*piece)]

    def _fault_of(self, part: BlockPart) -> str | None:
        try:
            return None if self._present.has_block(part) else _DIFFERS
        except DAMAGE as error:
            return str(error)


def _range(start: int, length: int, reason: str) -> DamagedRange:
    return DamagedRange(start=start, stop=start + length, reason=reason)
