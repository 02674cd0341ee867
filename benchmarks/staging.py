"""Fill a directory with the machine's own files, for the file system image.

The order is sorted, so the same machine gives the same content. Files are copied, because links would change
the inodes of the machine's own files.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator

from benchmarks.runner import BenchmarkError

SOURCE = "/usr"
BLOCK_BYTES = 4096               # files occupy multiples of this
FULL_ENOUGH = 0.995              # of the limit: no search for the one file that fits exactly
CHANGE_EVERY_BYTES = 64 << 10    # in a repeated copy: no two blocks of the image are equal


def fill(directory: str, limit_bytes: int) -> int:
    """Copy files into the directory until they take about `limit_bytes`; return the number of inodes needed.

    A source that is too small is copied again, with a few bytes of every file changed.

    Raises:
        BenchmarkError: the source has no readable files.
    """
    taken_bytes, inodes, turn = 0, 0, 0
    while taken_bytes < limit_bytes * FULL_ENOUGH:
        before = taken_bytes
        for path, size_bytes in _files(SOURCE):
            if taken_bytes + size_bytes > limit_bytes:
                continue
            target = os.path.join(directory, str(turn), os.path.relpath(path, SOURCE))
            if not os.path.isdir(os.path.dirname(target)):
                os.makedirs(os.path.dirname(target))
                inodes += len(os.path.relpath(target, directory).split(os.sep))
            if _copy(path, target, turn):
                taken_bytes += size_bytes
                inodes += 1
            if taken_bytes >= limit_bytes * FULL_ENOUGH:
                break
        if taken_bytes == before:
            raise BenchmarkError(f"{SOURCE} has no readable files that would fill an image")
        turn += 1
    return inodes


def _files(top: str) -> Iterator[tuple[str, int]]:
    """Yield the regular files below `top`, sorted, and how many blocks each occupies."""
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                facts = os.lstat(path)
                if stat.S_ISREG(facts.st_mode) and facts.st_size:
                    yield path, -(-facts.st_size // BLOCK_BYTES) * BLOCK_BYTES


def _copy(path: str, target: str, turn: int) -> bool:
    """Copy one file; return False if it cannot be read."""
    try:
        shutil.copyfile(path, target)
    except PermissionError:
        return False
    if turn:
        with open(target, "r+b") as file:
            for offset in range(0, os.path.getsize(target), CHANGE_EVERY_BYTES):
                file.seek(offset)
                file.write(bytes([turn & 0xFF]))
    return True
