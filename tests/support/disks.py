"""Disks on which little fits."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pytest

    from backyfs.model import Buffer


@contextmanager
def small_disk(place: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limit how many bytes fit into a directory: by a real file system if one can be mounted, otherwise by a fault."""
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "none", str(place)]
    try:
        mounted = subprocess.run(["mount", *options], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        if not mounted:
            _limit_writes(place, size_bytes, monkeypatch)
        yield
    finally:
        if mounted:
            subprocess.run(["umount", str(place)], check=True)


def _limit_writes(place: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def write_at(fd: int, part: Buffer, offset: int) -> int:
        room = size_bytes - sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, memoryview(part)[:room], offset)

    def write(fd: int, part: Buffer) -> int:
        count = write_at(fd, part, os.lseek(fd, 0, os.SEEK_CUR))
        os.lseek(fd, count, os.SEEK_CUR)
        return count

    def pwritev(fd: int, parts: Sequence[Buffer], offset: int) -> int:
        return write_at(fd, b"".join(parts), offset)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "writev", lambda fd, parts: write(fd, b"".join(parts)))
    monkeypatch.setattr(os, "pwritev", pwritev)
