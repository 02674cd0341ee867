"""Keep a disk cache within its size, without a lock or a count that processes share.

A process that has written a share of the size looks at all files, and removes the ones that were not read for longest.
While that lasts it may write one more share, and no more. So these are the most bytes that the files of a cache take:

    7/8 of its size, 1/16 for each process that writes to it, and one object for each thread of these

which is the size for two processes. A process that ends before it has looked for the first time can add two shares,
and the next one removes them.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.storage.beneath import Root

_SHARES = 64  # of the size
_PAUSE_S = 60.0  # after an error, before anything is written again
_END_S = 5.0  # for a look that is under way when the cache is closed: its disk may hang
_BLOCK_BYTES = 512  # of st_blocks, stat(2)
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SHELF = re.compile(r"[0-9a-f]{2}")
_COPY = re.compile(r"[0-9a-f]{62}")
# Ages are counted in steps of 1 %, so that memory does not depend on the number of files.
_STEPS_PER_E = 100
_STEPS = 2500  # e^25 s is more than any clock shows


@dataclass(slots=True)
class _Usage:
    """The bytes of all copies by their ages."""

    by_age: list[int] = field(default_factory=lambda: [0] * _STEPS)

    def excess(self, most: int) -> list[int]:
        """Return how many bytes to remove of each age, so that `most` bytes are left: the oldest first."""
        left = sum(self.by_age) - most
        excess = [0] * _STEPS
        for age in reversed(range(_STEPS)):
            excess[age] = max(0, min(left, self.by_age[age]))
            left -= excess[age]
        return excess


class Space:
    """The bytes that a cache may take. Any thread may call any method."""

    def __init__(self, root: Root, size_bytes: int, on_error: Callable[[OSError], None]) -> None:
        """Limit a directory. `on_error` is called with an error that keeps it from being limited."""
        self._root = root
        self._share = max(1, size_bytes // _SHARES)
        self._most = size_bytes - size_bytes // 8
        self._on_error = on_error
        self._lock = threading.Lock()  # guards the next three
        self._written = self._share  # since the last look began: the first write starts one
        self._looking: threading.Thread | None = None
        self._paused_until = -math.inf
        self._closed = threading.Event()

    def take(self, size_bytes: int) -> bool:
        """Return whether this many bytes may be written now, and count them."""
        with self._lock:
            if time.monotonic() < self._paused_until or self._closed.is_set():
                return False
            if self._looking is not None:
                if self._written >= 2 * self._share:  # enough until it ends
                    return False
            elif self._written + size_bytes > self._share:
                looking = threading.Thread(target=self._look, name="cache", daemon=True)
                try:
                    looking.start()
                except RuntimeError:  # there are too many threads
                    return False
                self._looking = looking
                self._written = 0
            self._written += size_bytes  # even now, because they may be written too late to be seen
        return True

    def pause(self) -> None:
        """Let nothing be written for a minute."""
        with self._lock:
            self._paused_until = time.monotonic() + _PAUSE_S

    def close(self) -> None:
        """End what is under way. A look whose disk hangs is left behind: it ends with the process."""
        self._closed.set()
        with self._lock:
            looking = self._looking
        if looking is not None:
            looking.join(_END_S)

    def _look(self) -> None:
        written = 0
        try:
            self._remove_oldest(time.time())
        except OSError as error:
            written = self._share  # look again before anything is written
            self._on_error(error)
        finally:
            with self._lock:
                self._written += written
                self._looking = None

    def _remove_oldest(self, now: float) -> None:
        usage = _Usage()
        for _, _, age, size in self._copies(now):
            usage.by_age[age] += size
        excess = usage.excess(self._most)
        if not any(excess):
            return
        for shelf, name, age, size in self._copies(now):
            if excess[age] > 0:
                excess[age] -= size
                with suppress(FileNotFoundError):  # another process has removed it
                    os.unlink(name, dir_fd=shelf)

    def _copies(self, now: float) -> Iterator[tuple[int, str, int, int]]:
        """Yield every copy: its open directory, its name, its age in steps, and the bytes that it takes."""
        for shelf in self._shelves():
            with suppress(FileNotFoundError):
                fd = self._root.open(shelf, _LIST)
                try:
                    with os.scandir(fd) as entries:
                        for entry in entries:
                            if self._closed.is_set():
                                return
                            if _COPY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                                with suppress(FileNotFoundError):
                                    about = entry.stat(follow_symlinks=False)
                                    yield fd, entry.name, _steps(now - about.st_mtime), about.st_blocks * _BLOCK_BYTES
                finally:
                    os.close(fd)

    def _shelves(self) -> list[str]:
        fd = self._root.open("", _LIST)
        try:
            return [name for name in os.listdir(fd) if _SHELF.fullmatch(name)]
        finally:
            os.close(fd)


def _steps(age_s: float) -> int:
    """Return an age in steps. A time in the future counts as the greatest age: a wrong clock has set it."""
    if age_s < -_PAUSE_S:
        return _STEPS - 1
    return min(int(math.log1p(max(0.0, age_s)) * _STEPS_PER_E), _STEPS - 1)
