"""Detection of open journals that Linux does not replay."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.attach.foreign import has_open_journal
from tests.support.images import ntfs_log

MIB = 1 << 20
OPEN, CLOSED = 0, 2  # flags of a restart area
CLIENT, NO_CLIENT = 0, 0xFFFF


def ntfs(path: Path) -> bytearray:
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkntfs", "-q", "-F", "-Q", str(path)], check=True, capture_output=True)
    return bytearray(path.read_bytes())


def is_open(kind: str, image: bytes | bytearray) -> bool:
    return has_open_journal(kind, lambda offset, size: bytes(image[offset : offset + size]))


def test_an_unused_ntfs_has_no_open_log(tmp_path: Path) -> None:
    assert not is_open("ntfs", ntfs(tmp_path / "image"))


@pytest.mark.parametrize(
    ("client", "flags", "expected"),
    [(CLIENT, OPEN, True), (CLIENT, CLOSED, False), (NO_CLIENT, OPEN, False), (NO_CLIENT, CLOSED, False)],
)
def test_the_log_of_an_ntfs_says_whether_it_is_open(tmp_path: Path, client: int, flags: int, expected: bool) -> None:
    image = ntfs(tmp_path / "image")
    ntfs_log(image, client, flags)
    assert is_open("ntfs", image) is expected


@pytest.mark.parametrize(("state", "expected"), [(0, False), (1, True), (2, True)])
def test_the_superblock_of_a_jfs_says_whether_it_is_mounted(state: int, expected: bool) -> None:
    image = bytearray(0x9000)
    image[0x8000:0x8004] = b"JFS1"
    image[0x8000 + 40] = state
    assert is_open("jfs", image) is expected


@pytest.mark.parametrize(
    ("attributes", "expected"), [(0x2100, False), (0x2000, True), (0x0100, False), (0x0000, False)]
)
def test_the_header_of_an_hfsplus_says_whether_it_is_mounted(attributes: int, expected: bool) -> None:
    image = bytes(1024) + b"H+\0\4" + attributes.to_bytes(4, "big") + bytes(500)
    assert is_open("hfsplus", image) is expected


def test_other_file_systems_have_no_such_journal() -> None:
    assert not is_open("vfat", bytes(4096))


@given(st.sampled_from(["ntfs", "jfs", "hfsplus", ""]), st.binary(max_size=1200), st.integers(0, 34 << 10))
def test_no_content_of_an_image_raises(kind: str, content: bytes, start: int) -> None:
    def read(offset: int, size: int) -> bytes:
        return content[max(offset - start, 0) :][:size]

    assert has_open_journal(kind, read) in {True, False}


@given(st.lists(st.tuples(st.integers(0, 12 << 10), st.integers(0, 255)), max_size=30))
def test_no_change_of_an_ntfs_raises(changes: list[tuple[int, int]]) -> None:
    image = bytearray(4 * MIB)
    image[0x0B:0x0E] = b"\0\2\1"  # clusters of 512 bytes
    image[0x30] = 8               # the master file table
    image[0x40] = 2               # records of 1,024 bytes
    image[6144:6148] = b"FILE"
    for offset, byte in changes:
        image[offset] = byte
    assert is_open("ntfs", image) in {True, False}
