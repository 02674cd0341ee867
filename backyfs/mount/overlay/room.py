"""How much the layers of a mount may hold together. In memory; no I/O."""

from __future__ import annotations

import errno
import os
import threading


class Room:
    """A number of bytes that several layers share. May be used by several threads at once."""

    def __init__(self, most_bytes: int | None) -> None:
        """Allow `most_bytes` altogether; None: no bound but the disk."""
        self._most_bytes = most_bytes
        self._taken_bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take `count` bytes.

        Raises:
            OSError: ENOSPC, fewer are left; none is taken.
        """
        with self._lock:
            if self._most_bytes is not None and self._taken_bytes + count > self._most_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._taken_bytes += count

    def give_back(self, count: int) -> None:
        """Give `count` bytes back that were taken."""
        with self._lock:
            self._taken_bytes -= count
