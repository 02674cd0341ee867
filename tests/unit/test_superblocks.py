"""Superblocks of real file systems, and bytes that are not superblocks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backyfs.attach.superblocks import declared_bytes, has_external_log, needs_replay
from tests.support.images import run_tool

pytestmark = pytest.mark.slow

MIB = 1 << 20
KINDS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "ntfs", "squashfs", "vfat", "")
MAKERS = {
    "ext2": (8 * MIB, ("mkfs.ext2", "-q", "-F")),
    "ext4": (8 * MIB, ("mkfs.ext4", "-q", "-F", "-O", "64bit")),
    "xfs": (320 * MIB, ("mkfs.xfs", "-q")),
    "btrfs": (128 * MIB, ("mkfs.btrfs", "-q")),
}


def made(path: Path, kind: str) -> bytes:
    size, command = MAKERS[kind]
    with path.open("wb") as file:
        file.truncate(size)
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    return path.read_bytes()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_system_knows_its_length(tmp_path: Path, kind: str) -> None:
    image = made(tmp_path / kind, kind)
    assert declared_bytes(kind, lambda offset, size: image[offset : offset + size]) == MAKERS[kind][0]


def test_a_squashfs_knows_its_length(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    run_tool("mksquashfs", str(tmp_path / "files"), str(tmp_path / "image"), "-quiet", "-no-progress", "-nopad")
    image = (tmp_path / "image").read_bytes()
    assert declared_bytes("squashfs", lambda offset, size: image[offset : offset + size]) == len(image)


def test_nothing_is_known_about_other_file_systems() -> None:
    assert declared_bytes("vfat", lambda _offset, size: bytes(size)) is None


def test_an_unmounted_ext_has_nothing_to_replay(tmp_path: Path) -> None:
    image = bytearray(made(tmp_path / "image", "ext4"))
    assert not needs_replay("ext4", lambda offset, size: bytes(image[offset : offset + size]))
    image[1024 + 0x60] |= 4  # EXT4_FEATURE_INCOMPAT_RECOVER
    assert needs_replay("ext4", lambda offset, size: bytes(image[offset : offset + size]))


def test_the_log_of_an_xfs_is_found(tmp_path: Path) -> None:
    image = bytearray(made(tmp_path / "image", "xfs"))
    assert not has_external_log("xfs", lambda offset, size: bytes(image[offset : offset + size]))
    image[48:56] = bytes(8)  # sb_logstart
    assert has_external_log("xfs", lambda offset, size: bytes(image[offset : offset + size]))


@given(st.sampled_from(KINDS), st.binary(max_size=600), st.integers(0, 64 << 10))
def test_no_content_of_an_image_raises(kind: str, content: bytes, start: int) -> None:
    def read(offset: int, size: int) -> bytes:
        return content[max(offset - start, 0) :][:size]

    assert (declared_bytes(kind, read) or 0) >= 0
    assert needs_replay(kind, read) in {True, False}
    assert has_external_log(kind, read) in {True, False}
