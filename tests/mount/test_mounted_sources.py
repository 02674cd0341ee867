"""A warning about a source with a file system mounted read-write, however the mount is stacked on it."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from backyfs.sources.change import ChangeKind
from backyfs.sources.registry import open_source
from tests.support.attaching import MIB, by_hand, disk_of, empty_image
from tests.support.images import ext4_image, run_tool
from tests.support.program import backyfs
from tests.support.repositories import make_repository
from tests.unit.test_sources import loop_device

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("loop_devices")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return ext4_image(tmp_path / "image", tmp_path / "empty", 8 * MIB)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "at"


def warned(source: Path | str) -> list[str]:
    """Return the warnings that a source is mounted."""
    opened = open_source(str(source))
    try:
        return [warning.text for warning in opened.signs_of_change() if warning.kind is ChangeKind.MOUNTED]
    finally:
        opened.close()


@contextmanager
def partitions(device: str) -> Iterator[list[str]]:
    """Create nodes for the partitions of a loop device, which the kernel does not always do."""
    subprocess.run(["partx", "--add", device], check=True)
    try:
        yield [f"{device}p1", f"{device}p2"]
    finally:
        subprocess.run(["partx", "--delete", device], check=True)


@contextmanager
def in_a_separate_mount_namespace(device: str, at: Path) -> Iterator[None]:
    """Mount a device where only one other process can see it."""
    at.mkdir()
    script = 'mount "$0" "$1" && echo mounted && read -r line'
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, device, str(at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == b"mounted\n"
            yield
        finally:
            process.stdin.close()


def test_an_unused_device_gives_no_warning(image: Path) -> None:
    with loop_device(image) as device:
        assert warned(device) == []
        assert warned(image) == []


def test_a_mounted_device_and_the_file_behind_it_give_a_warning(image: Path, at: Path) -> None:
    with loop_device(image) as device, by_hand(device, at):
        mounted = f"is mounted read-write ({device} on {at}): the version may mix old and new bytes; "
        for source in (device, image):
            [text] = warned(source)
            assert text.startswith(f"{source} {mounted}")


@pytest.mark.parametrize("options", [["-o", "ro,noload"], ["-o", "loop,ro,noload"]])
def test_a_read_only_mount_gives_no_warning(image: Path, at: Path, options: list[str]) -> None:
    with loop_device(image) as device, by_hand(image if "loop" in options[1] else device, at, *options):
        assert warned(device) == []
        assert warned(image) == []


def test_a_read_write_file_system_behind_a_read_only_mount_gives_a_warning(
    image: Path, at: Path, tmp_path: Path
) -> None:
    with by_hand(image, at, "-o", "loop"), by_hand(at, tmp_path / "view", "-o", "bind,ro"):
        subprocess.run(["umount", str(at)], check=True)
        assert len(warned(image)) == 1


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_file_is_recognized_under_any_name(image: Path, at: Path, tmp_path: Path, link: object) -> None:
    link(image, tmp_path / "alias")  # type: ignore[operator]
    with by_hand(image, at, "-o", "loop"):
        assert len(warned(tmp_path / "alias")) == 1


def test_another_file_in_the_place_of_a_mounted_one_gives_no_warning(image: Path, at: Path) -> None:
    with by_hand(image, at, "-o", "loop"):
        image.unlink()
        empty_image(image, 8 * MIB)
        assert warned(image) == []


def test_a_mounted_partition_and_its_disk_give_a_warning(image: Path, at: Path, tmp_path: Path) -> None:
    other = ext4_image(tmp_path / "other", tmp_path / "empty", 8 * MIB)
    disk = disk_of(tmp_path / "disk", {image: "linux", other: "linux"})
    with loop_device(disk) as device, partitions(device) as [first, second], by_hand(first, at):
        assert [len(warned(source)) for source in (disk, device, first, second)] == [1, 1, 1, 0]


def test_a_partition_of_a_disk_mounted_as_a_whole_gives_a_warning(image: Path, at: Path) -> None:
    with loop_device(image) as device, by_hand(device, at):
        subprocess.run(["addpart", device, "1", "2048", "2048"], check=True)
        try:
            assert len(warned(f"{device}p1")) == 1
        finally:
            subprocess.run(["delpart", device, "1"], check=True)


def test_a_mount_on_a_loop_device_on_a_loop_device_gives_a_warning(image: Path, at: Path) -> None:
    with loop_device(image) as below, loop_device(below) as above, by_hand(above, at):
        assert [len(warned(source)) for source in (image, below, above)] == [1, 1, 1]


def test_a_mount_on_another_loop_device_of_the_same_file_gives_a_warning(image: Path, at: Path) -> None:
    with loop_device(image) as idle, loop_device(image) as device, by_hand(device, at):
        assert len(warned(idle)) == 1


def test_every_device_of_a_mounted_btrfs_gives_a_warning(at: Path, tmp_path: Path) -> None:
    first, second = (empty_image(tmp_path / name, 256 * MIB) for name in ("first", "second"))
    with loop_device(first) as one, loop_device(second) as two:
        run_tool("mkfs.btrfs", "--quiet", one, two)
        subprocess.run(["btrfs", "device", "scan", one, two], check=True, capture_output=True)
        try:
            with by_hand(one, at):
                assert [len(warned(source)) for source in (one, two, first, second)] == [1, 1, 1, 1]
            assert warned(two) == []
        finally:
            subprocess.run(["btrfs", "device", "scan", "--forget", one, two], check=False, capture_output=True)


def test_a_mount_in_another_mount_namespace_gives_a_warning(image: Path, at: Path) -> None:
    with loop_device(image) as device, in_a_separate_mount_namespace(device, at):
        assert [len(warned(source)) for source in (device, image)] == [1, 1]


def test_backup_warns_on_stderr_in_json_and_in_metrics_and_ends_with_status_0(
    image: Path, at: Path, tmp_path: Path
) -> None:
    config = make_repository(tmp_path / "repository", block_size=MIB)
    metrics = tmp_path / "metrics"
    with by_hand(image, at, "-o", "loop"):
        shown = backyfs("-c", config, "--metrics-file", metrics, "backup", image, "disk")
        as_json = backyfs("-c", config, "--json", "backup", image, "disk")
    assert (shown.returncode, as_json.returncode) == (0, 0)
    assert shown.stderr.count(f"{image} is mounted read-write (") == 1
    labels = f'config="{config}",command="backup",kind='
    assert f'backyfs_run_source_warnings{{{labels}"changed"}} 0.0\n' in metrics.read_text()
    assert f'backyfs_run_source_warnings{{{labels}"mounted"}} 1.0\n' in metrics.read_text()
    assert as_json.stderr == ""
    [warning] = json.loads(as_json.stdout)["warnings"]
    assert warning["kind"] == "mounted"
    assert warning["text"].startswith(f"{image} is mounted read-write (")
