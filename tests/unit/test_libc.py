"""Functions of the C library: system errors keep their numbers."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from backyfs.libc import punch_hole, syncfs, umount

if TYPE_CHECKING:
    from pathlib import Path


def test_a_hole_reads_as_zeros_and_takes_no_space(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (1 << 20))
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
        before = os.fstat(opened.fileno()).st_blocks
        punch_hole(opened.fileno(), 4096, 512 << 10)
        os.fsync(opened.fileno())
        assert os.fstat(opened.fileno()).st_blocks == before - 1024
    assert file.read_bytes() == b"x" * 4096 + bytes(512 << 10) + b"x" * ((1 << 20) - 4096 - (512 << 10))


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda: syncfs(-1), errno.EBADF),
        (lambda: punch_hole(-1, 0, 1), errno.EBADF),
        (lambda: umount("/nowhere/at all", 0), errno.ENOENT if os.geteuid() == 0 else errno.EPERM),
    ],
)
def test_a_system_error_has_its_number(call, number):
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        call()
    assert caught.value.errno == number
