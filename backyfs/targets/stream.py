"""A stream as target of a restore: a pipe, a socket or a file that is written from its front to its end.

Threads bring the pieces of the image in any order; each waits for its turn. One more thread writes, so that a
reader who is slow, or has stopped, keeps nobody from ending.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import deque
from typing import TYPE_CHECKING

from backyfs.errors import InterruptedByUser, ReaderGoneError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Buffer

_QUEUED_BYTES = 8 << 20  # a piece is taken while fewer wait to be written
_ASK_EVERY_S = 0.2       # whether the command is to end
_ZEROS = bytes(1 << 20)


class StreamTarget:
    """A file descriptor that takes the bytes of an image in order."""

    begins_empty = False  # zeros take their room in a stream

    def __init__(
        self,
        fd: int,
        *,
        start: int = 0,
        stop: Callable[[], bool],
        syncs: bool = True,
        examine: Callable[[int], None] = lambda _fd: None,
    ) -> None:
        """Begin to write to `fd`, which stays the caller's, what the image has from byte `start` on.

        Threads that wait for their turn ask `stop`. A shell may have opened a file or block device as `fd`: `examine`
        is called with it before anything is written, and with `syncs` it is on the disk when it is finished.

        Raises:
            TargetError: it is a terminal, or `examine` refuses it.
        """
        if os.isatty(fd):
            raise TargetError(
                "the standard output is a terminal, and an image is no text; redirect it, or name a file or device"
            )
        mode = os.fstat(fd).st_mode
        is_on_disk = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        if is_on_disk:
            examine(fd)
        self._fd = fd
        self._syncs = syncs and is_on_disk
        self._stop = stop
        self._changed = threading.Condition()  # guards all below
        self._next_byte = start                # of the image: what is taken next
        self._queue: deque[Buffer] = deque()   # taken and not written yet; the first one is under way
        self._queued_bytes = 0
        self._error: TargetError | None = None
        self._closed = False
        # A daemon, and not waited for unless all is written: nothing can end a write that nobody reads.
        self._writer = threading.Thread(target=self._write_queue, name="backyfs-stream", daemon=True)
        self._writer.start()

    def write(self, offset: int, block: Buffer) -> None:
        """Take a block when everything before it was taken.

        Several threads may bring blocks in any order, as long as the one with the next block waits for none of them.

        Raises:
            ReaderGoneError: nobody reads any more.
            TargetError: it cannot be written.
            InterruptedByUser: `stop` said so while it was waiting.
        """
        with self._changed:
            self._wait(lambda: self._next_byte == offset and self._queued_bytes < _QUEUED_BYTES)
            self._queue.append(block)
            self._queued_bytes += len(block)
            self._next_byte += len(block)
            self._changed.notify_all()

    def write_zeros(self, offset: int, length: int) -> None:
        """Take zeros, as `write` takes a block.

        Raises:
            What `write` raises.
        """
        for start in range(0, length, len(_ZEROS)):
            self.write(offset + start, _ZEROS[: min(len(_ZEROS), length - start)])

    def leave(self, offset: int, length: int) -> None:
        """Take zeros: what comes after them has to be at its place.

        Raises:
            What `write` raises.
        """
        self.write_zeros(offset, length)

    def finish(self) -> None:
        """Wait until everything is written, and on the disk if it goes to a file or block device.

        Raises:
            What `write` raises; TargetError also if it does not reach the disk.
        """
        with self._changed:
            self._wait(lambda: not self._queue)
        if self._syncs:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise TargetError(
                    f"the standard output did not reach the disk in full: {error.strerror}; make room or look at the "
                    "log of the kernel (dmesg), then restore it again"
                ) from error

    def _wait(self, is_time: Callable[[], bool]) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if is_time():
                return
            if self._stop():
                raise InterruptedByUser("interrupted: what was written is not all of the image")
            self._changed.wait(_ASK_EVERY_S)

    def _write_queue(self) -> None:
        """Write what is queued until the end. Runs in its own thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                block = self._queue[0]
            error = self._write_all(block)
            with self._changed:
                self._error = error
                self._queue.popleft()
                self._queued_bytes -= len(block)
                self._changed.notify_all()
            if error is not None:
                return

    def _write_all(self, block: Buffer) -> TargetError | None:
        try:
            with memoryview(block) as rest:
                position = 0
                while position < len(rest):
                    position += os.write(self._fd, rest[position:])
        except BrokenPipeError:
            return ReaderGoneError("nobody reads the standard output any more")
        except OSError as error:
            return TargetError(f"the standard output cannot be written: {error.strerror}")
        return None

    def close(self) -> None:
        """Write nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            is_idle = not self._queue or self._error is not None
        if is_idle:
            self._writer.join()
