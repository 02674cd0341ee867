"""Single files from a backup: the image of a file system, mounted through a loop device or opened directly."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.model import DEFAULT_BLOCK_SIZE
from tests.support.images import ext4_image, file_tree, run_tool
from tests.support.program import PATIENCE_S, backyfs, mounting
from tests.support.repositories import back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = 300
SIZE = 40 << 20  # ten blocks


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return file_tree(tmp_path_factory.mktemp("originals"), FILES)


@pytest.fixture(scope="module")
def data(fuse: None, originals: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mount a backup of an ext4 file system with the originals; return its image."""
    directory = tmp_path_factory.mktemp("loop")
    config_file = make_repository(directory / "repository", block_size=DEFAULT_BLOCK_SIZE)
    with opened(config_file) as repository:
        back_up(repository, ext4_image(directory / "image", originals, SIZE))
    with mounting(config_file, directory / "mount") as at:
        yield at / "by_name" / "disk" / "latest" / "data"


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Attach an image to a loop device, and detach it at the end."""
    arguments = ["losetup", "--find", "--show", "--read-only", str(image)]
    device = subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def attached(image: Path, directory: Path, options: str) -> Iterator[Path]:
    """Mount the file system of an image, and unmount it at the end; mount(8) detaches its loop device."""
    directory.mkdir()
    subprocess.run(["mount", "-o", options, str(image), str(directory)], check=True, timeout=PATIENCE_S)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and "lost+found" not in file.parts
    }


@pytest.mark.usefixtures("loop_devices")
def test_every_file_in_a_loop_mounted_image_equals_the_original(data: Path, originals: Path, tmp_path: Path) -> None:
    with attached(data, tmp_path / "files", "loop,ro,noload") as files:
        found = contents(files)
    assert len(found) == FILES
    assert found == contents(originals)


@pytest.mark.usefixtures("loop_devices")
def test_a_loop_device_reads_the_image_byte_for_byte(data: Path) -> None:
    with loop_device(data) as device:
        size = subprocess.run(["blockdev", "--getsize64", device], check=True, capture_output=True, text=True).stdout
        assert int(size) == SIZE
        subprocess.run(["cmp", device, str(data)], check=True, timeout=PATIENCE_S)


@pytest.mark.usefixtures("loop_devices")
def test_a_loop_device_on_an_image_is_read_only(data: Path) -> None:
    with loop_device(data) as device:
        assert Path(f"/sys/block/{Path(device).name}/ro").read_text() == "1\n"


@pytest.mark.usefixtures("loop_devices")
def test_a_mount_under_a_loop_device_is_in_use_while_a_file_on_it_is_open(data: Path, tmp_path: Path) -> None:
    at = data.parents[3]
    with attached(data, tmp_path / "files", "loop,ro,noload") as files:
        with next(file for file in files.rglob("*.bin") if file.is_file()).open("rb"):
            done = backyfs("umount", at)
        assert done.returncode == 10
        assert f"{files} is still mounted: it is busy, used by " in done.stderr
        assert f"(pid {os.getpid()}, open file)" in done.stderr
        assert len(contents(files)) == FILES


@pytest.mark.usefixtures("loop_devices")
def test_direct_reads_of_a_loop_device_are_correct(data: Path) -> None:
    with loop_device(data) as device:
        subprocess.run(["losetup", "--direct-io=on", device], check=True)
        subprocess.run(["cmp", device, str(data)], check=True, timeout=PATIENCE_S)


def test_a_file_can_be_read_without_a_loop_device(data: Path, originals: Path) -> None:
    for name, content in sorted(contents(originals).items())[::40]:
        assert run_tool("debugfs", "-R", f'cat "/{name}"', str(data)) == content


def test_the_file_system_of_an_image_is_clean(data: Path) -> None:
    run_tool("e2fsck", "-f", "-n", str(data))  # raises if it is not
