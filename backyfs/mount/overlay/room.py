"""The limit on the total size of the layers of a mount. In memory; no I/O."""

from __future__ import annotations

import errno
import os
import threading


class Room:
    """A number of bytes that several layers share. Safe for several threads at once."""

    def __init__(self, most_bytes: int | None) -> None:
        """Allow `most_bytes` in total; None: only the disk limits them."""
        self._most_bytes = most_bytes
        self._taken_bytes = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take `count` bytes.

        Raises:
            OSError: ENOSPC: fewer are left. Nothing is taken.
        """
        with self._lock:
            if self._most_bytes is not None and self._taken_bytes + count > self._most_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._taken_bytes += count

    def give_back(self, count: int) -> None:
        """Give back `count` bytes that were taken."""
        with self._lock:
            self._taken_bytes -= count
