"""Writable images: file systems, partition tools and plain writes change only a separate layer."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.images import random_bytes, run_tool, sparse_image
from tests.support.program import backyfs, clear, ends, mount, mounting, process_of
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 16 << 20
LATEST = "by_name/disk/latest"
DATA = f"{LATEST}/data"

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    config_file = make_repository(tmp_path / "repository", block_size=16 * BLOCK)
    pieces = {0: random_bytes(3 * BLOCK, 1), 100 * BLOCK: random_bytes(40 * BLOCK, 2)}
    with opened(config_file) as repository:
        back_up(repository, sparse_image(tmp_path / "image", SIZE, pieces))
    return config_file


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tmp_path / "written"


@pytest.fixture
def original(tmp_path: Path, config_file: Path) -> bytes:
    return (tmp_path / "image").read_bytes()


def write_at(file: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, data, offset) == len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_written_bytes_are_read_back_and_the_version_does_not_change(
    config_file: Path, written: Path, tmp_path: Path, original: bytes
) -> None:
    expected = bytearray(original)
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        for offset, data in ((0, b"first"), (5000, b"x" * 9000), (SIZE - 3, b"end"), (101 * BLOCK + 7, b"inside")):
            write_at(at / DATA, offset, data)
            expected[offset : offset + len(data)] = data
        assert (at / DATA).read_bytes() == expected
    with mounting(config_file, tmp_path / "mount") as at:
        assert (at / DATA).read_bytes() == original
    restored = tmp_path / "restored"
    assert backyfs("-c", config_file, "restore", "disk@latest", restored).returncode == 0
    assert restored.read_bytes() == original


def test_written_bytes_are_kept_for_the_next_mount(
    config_file: Path, written: Path, tmp_path: Path, original: bytes
) -> None:
    for text in (b"one", b"two"):
        with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
            write_at(at / DATA, len(text) * BLOCK + (text == b"two"), text)
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        content = (at / DATA).read_bytes()
    expected = bytearray(original)
    expected[3 * BLOCK : 3 * BLOCK + 4] = b"otwo"
    assert content == expected


def test_written_bytes_are_gone_after_discard(
    config_file: Path, written: Path, tmp_path: Path, original: bytes
) -> None:
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        write_at(at / DATA, 0, b"kept")
    with mounting(config_file, tmp_path / "mount", "--writable", str(written), "--discard") as at:
        assert (at / DATA).read_bytes() == original
        write_at(at / DATA, 0, b"lost")
        assert (at / DATA).read_bytes()[:4] == b"lost"
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        assert (at / DATA).read_bytes() == original


def test_synced_bytes_survive_a_kill(config_file: Path, written: Path, tmp_path: Path, original: bytes) -> None:
    at = tmp_path / "mount"
    at.mkdir()
    try:
        assert mount(config_file, at, "--writable", str(written)).returncode == 0
        write_at(at / DATA, 7 * BLOCK + 1, b"synced")
        process = os.pidfd_open(process_of(at))
        signal.pidfd_send_signal(process, signal.SIGKILL)
        assert ends(process)
        os.close(process)
    finally:
        clear(at)
    with mounting(config_file, at, "--writable", str(written)):
        content = (at / DATA).read_bytes()
    expected = bytearray(original)
    expected[7 * BLOCK + 1 : 7 * BLOCK + 7] = b"synced"
    assert content == expected


def test_an_image_keeps_its_size_mode_and_owner(config_file: Path, written: Path, tmp_path: Path) -> None:
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        data = at / DATA
        with pytest.raises(PermissionError):
            os.truncate(data, BLOCK)
        with pytest.raises(PermissionError):
            data.chmod(0o777)
        descriptor = os.open(data, os.O_WRONLY)
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(descriptor, b"beyond", SIZE)
        os.close(descriptor)
        assert data.stat().st_size == SIZE
        with pytest.raises(OSError, match="Read-only file system"):
            (at / LATEST / "name").open("r+b")


def test_a_file_system_can_be_made_filled_and_checked_in_an_image(
    config_file: Path, written: Path, tmp_path: Path
) -> None:
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        data = str((at / DATA).resolve())
        run_tool("mkfs.ext4", "-q", "-F", data)
        run_tool("e2fsck", "-f", "-n", data)
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        run_tool("e2fsck", "-f", "-n", str(at / DATA))


@pytest.fixture
def mounted_inside(loop_devices: None, tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "files"
    directory.mkdir()
    yield directory
    clear(directory)


def test_files_written_to_a_mounted_file_system_are_kept_for_the_next_mount(
    config_file: Path, written: Path, tmp_path: Path, mounted_inside: Path
) -> None:
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        data = str((at / DATA).resolve())
        run_tool("mkfs.ext4", "-q", "-F", data)
        run_tool("mount", "-o", "loop", data, str(mounted_inside))
        (mounted_inside / "file").write_bytes(random_bytes(1 << 20, 3))
        run_tool("umount", str(mounted_inside))
        run_tool("e2fsck", "-f", "-n", data)
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        run_tool("mount", "-o", "loop", str((at / DATA).resolve()), str(mounted_inside))
        try:
            assert (mounted_inside / "file").read_bytes() == random_bytes(1 << 20, 3)
        finally:
            run_tool("umount", str(mounted_inside))


def test_partitions_created_in_an_image_appear_and_can_be_written(
    config_file: Path, written: Path, tmp_path: Path
) -> None:
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)) as at:
        subprocess.run(
            ["sfdisk", "-q", str((at / DATA).resolve())],
            input=b"label: gpt\nsize=4MiB\nsize=4MiB\n", check=True, capture_output=True,
        )  # fmt: skip
        partitions = at / LATEST / "partitions"
        assert sorted(os.listdir(partitions)) == ["1", "2", "table.txt"]
        write_at(partitions / "2", 10, b"in the second")
        assert (partitions / "2").read_bytes()[10:23] == b"in the second"
        assert b"in the second" in (at / DATA).read_bytes()


def test_a_directory_that_overlaps_mountpoint_or_repository_is_refused(config_file: Path, tmp_path: Path) -> None:
    at = tmp_path / "mount"
    at.mkdir()
    for directory, what in ((at / "in", "mountpoint"), (tmp_path / "repository" / "data" / "in", "repository")):
        done = mount(config_file, at, "--writable", str(directory))
        assert done.returncode == 10
        assert f"overlaps the {what}" in done.stderr
        assert not directory.exists()


def test_a_directory_in_use_by_another_mount_is_refused(config_file: Path, written: Path, tmp_path: Path) -> None:
    with mounting(config_file, tmp_path / "mount", "--writable", str(written)):
        second = tmp_path / "second"
        second.mkdir()
        done = mount(config_file, second, "--writable", str(written))
        assert done.returncode == 10
        assert "in use by another mount" in done.stderr


def test_discard_without_a_directory_is_refused(config_file: Path, tmp_path: Path) -> None:
    done = mount(config_file, tmp_path / "mount", "--discard")
    assert done.returncode == 1
    assert "--writable" in done.stderr


def test_a_full_disk_is_an_error_for_the_writer(config_file: Path, tmp_path: Path, loop_devices: None) -> None:
    small = tmp_path / "small"
    small.mkdir()
    run_tool("mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small))
    try:
        with mounting(config_file, tmp_path / "mount", "--writable", str(small / "written")) as at:
            descriptor = os.open(at / DATA, os.O_WRONLY)
            try:
                assert os.pwrite(descriptor, b"there", 0) == 5
                place = BLOCK
                with pytest.raises(OSError, match="No space left"):  # noqa: PT012 - the first ones fit
                    while place < SIZE:
                        place += os.pwrite(descriptor, bytes(4 << 20), place)
            finally:
                os.close(descriptor)
            content = (at / DATA).read_bytes()
            assert (content[:5], len(content)) == (b"there", SIZE)
    finally:
        clear(small)
