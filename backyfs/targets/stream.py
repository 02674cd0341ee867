"""Stdout as the target of a restore: a pipe, a socket or a file that is written from start to end.

Threads deliver the blocks of the image in any order, and each waits for its turn. A separate thread writes, so that a
reader that is slow, or has stopped, does not keep the command from ending.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING

from backyfs.errors import InterruptedByUser, ReaderGoneError, TargetError
from backyfs.host.loops import with_backing_files
from backyfs.host.occupants import use_of
from backyfs.targets.file import refuse_use
from backyfs.targets.protocol import Destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.config import Config
    from backyfs.model import Buffer
    from backyfs.targets.protocol import ReadableTarget, TargetRequest

_NAME = "the standard output"
_QUEUED_BYTES = 8 << 20  # a block is accepted while fewer bytes wait to be written
_ASK_EVERY_S = 0.2       # whether the command should end
_ZEROS = bytes(1 << 20)


def find_stdout(uri: str, config: Config | None) -> Destination:  # noqa: ARG001 - there is no limit to configure
    """Look up stdout.

    Raises:
        TargetError: it is closed.
    """
    if sys.__stdout__ is None:  # another file may have its number by now
        raise TargetError("is closed", subject=_NAME, remedy="redirect it, or name a file or device")
    fd = sys.__stdout__.fileno()

    def open_it(request: TargetRequest) -> StreamTarget:
        return StreamTarget(fd, start=request.start, stop=request.stop, syncs=request.syncs)

    return Destination(
        uri=uri,
        name=_NAME,
        open=open_it,
        can_continue=False,
        files=with_backing_files(f"/proc/self/fd/{fd}") if _is_on_disk(fd) else (),
    )


class StreamTarget:
    """A file descriptor that takes the bytes of an image in order."""

    parallel: int | None = None
    begins_empty = False  # a stream has no holes: zeros are written
    readable: ReadableTarget | None = None

    def __init__(self, fd: int, *, start: int = 0, stop: Callable[[], bool], syncs: bool = True) -> None:
        """Begin to write the image to `fd`, from byte `start` of the image on. The caller closes `fd`.

        Threads that wait for their turn ask `stop`. A shell may have opened a file or block device as `fd`: it must
        not be in use, and with `syncs`, `finish` waits for its disk. It is not locked, because the shell may pass it
        on.

        Raises:
            TargetError: it is a terminal, or in use.
        """
        if os.isatty(fd):
            raise TargetError(
                "is a terminal, and an image is not text",
                subject=_NAME,
                remedy="redirect it, or name a file or device",
            )
        is_on_disk = _is_on_disk(fd)
        if is_on_disk:
            refuse_use(use_of(fd), _NAME)
        self._fd = fd
        self._syncs = syncs and is_on_disk
        self._stop = stop
        self._changed = threading.Condition()  # guards everything below
        self._next_byte = start                # of the image: the next one to accept
        self._queue: deque[Buffer] = deque()   # accepted and not written yet; the first one is being written
        self._queued_bytes = 0
        self._error: TargetError | None = None
        self._closed = False
        # A daemon, and joined only if everything is written: nothing can end a write to a pipe that nobody reads.
        self._writer = threading.Thread(target=self._write_queue, name="backyfs-stream", daemon=True)
        self._writer.start()

    def write(self, offset: int, block: Buffer) -> None:
        """Accept a block after everything before it was accepted.

        Several threads may deliver blocks in any order, if the thread with the next block does not wait for them.

        Raises:
            ReaderGoneError: the reader has gone.
            TargetError: it cannot be written.
            InterruptedByUser: `stop` returned True while the thread was waiting.
        """
        with self._changed:
            self._wait(lambda: self._next_byte == offset and self._queued_bytes < _QUEUED_BYTES)
            self._queue.append(block)
            self._queued_bytes += len(block)
            self._next_byte += len(block)
            self._changed.notify_all()

    def write_zeros(self, offset: int, length: int) -> None:
        """Accept zeros, as `write` accepts a block, and with the same errors."""
        for start in range(0, length, len(_ZEROS)):
            self.write(offset + start, _ZEROS[: min(len(_ZEROS), length - start)])

    def leave(self, offset: int, length: int) -> None:
        """Accept zeros, because later bytes must be at their offset. The errors are those of `write`."""
        self.write_zeros(offset, length)

    def finish(self) -> None:
        """Wait until everything is written and, for a file or block device, on its disk.

        Raises:
            TargetError: not everything was written, or reached the disk.
            InterruptedByUser: `stop` returned True.
        """
        with self._changed:
            self._wait(lambda: not self._queue)
        if self._syncs:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise TargetError(
                    f"did not reach the disk in full: {error.strerror}",
                    subject=_NAME,
                    remedy="make room or look at the log of the kernel (dmesg), then restore it again",
                ) from error

    def _wait(self, is_time: Callable[[], bool]) -> None:
        while True:
            if self._error is not None:
                raise self._error
            if is_time():
                return
            if self._stop():
                raise InterruptedByUser("interrupted: not all of the image was written")
            self._changed.wait(_ASK_EVERY_S)

    def _write_queue(self) -> None:
        """Write the blocks of the queue until `close`. Runs in its own thread."""
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
            return ReaderGoneError("is no longer read by any program", subject=_NAME)
        except OSError as error:
            return TargetError(f"cannot be written: {error.strerror}", subject=_NAME)
        return None

    def close(self) -> None:
        """Stop writing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            is_idle = not self._queue or self._error is not None
        if is_idle:
            self._writer.join()


def _is_on_disk(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)
