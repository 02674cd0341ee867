"""Read-ahead: predict which blocks a reader will want next. Pure arithmetic on one open file; no I/O.

A reader that continues where it stopped is sequential. It gets a window of blocks ahead of it. The window doubles each
time the reader enters another block, and closes as soon as it jumps elsewhere, so random reads cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_WINDOW = 1  # blocks
# The kernel sends the requests of one reader in parallel, so they arrive a little out of order.
_TOLERANCE_BYTES = 8 << 20


@dataclass(slots=True)
class ReadAhead:
    """How one open file is read, and which blocks were requested ahead of its reader."""

    block_size: int
    most_blocks: int    # in the window; 0: no read-ahead
    _expected: int = 0  # byte at which a sequential reader continues
    _window: int = 0    # blocks
    _asked: int = 0     # all blocks before this one were requested
    _began: int = 0     # byte at which the reader became sequential

    def note(self, offset: int, size: int, image_bytes: int) -> tuple[range, range]:
        """Note a read of bytes [offset, offset + size).

        Return the blocks to load ahead of the reader, and the blocks that it has left behind.
        """
        end = min(offset + size, image_bytes)
        is_sequential = abs(offset - self._expected) <= _TOLERANCE_BYTES
        if not is_sequential:
            self._window = 0
            self._asked = 0
            self._began = offset
            self._expected = end
            return range(0), range(0)
        if end <= self._expected:
            return range(0), range(0)  # this request was overtaken by a later one
        advanced = end // self.block_size > self._expected // self.block_size
        passed = range(self._passed_before(self._expected), self._passed_before(end))
        self._expected = end
        if self._window == 0 or advanced:
            self._window = min(max(_FIRST_WINDOW, 2 * self._window), self.most_blocks)
        current = (end - 1) // self.block_size
        last_block = (image_bytes - 1) // self.block_size
        start = max(self._asked, current + 1)
        stop = min(current + 1 + self._window, last_block + 1)
        if stop <= start:
            return range(0), passed
        self._asked = stop
        return range(start, stop), passed

    def _passed_before(self, offset: int) -> int:
        """Return the first block that a reader at `offset` may still ask for."""
        return max(offset - _TOLERANCE_BYTES, self._began) // self.block_size
