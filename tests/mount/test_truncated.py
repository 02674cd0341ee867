"""`backyfs attach` of images that end before their partitions or file systems do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.attaching import MIB, attach, cleared, empty_image, left_of, repository_of
from tests.support.images import ext4_image, run_tool
from tests.support.program import backyfs, mounting

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("loop_devices")

MOUNT_ERROR = 10


def disk(path: Path, label: str, file_system: Path, *sizes: int) -> Path:
    """Make a disk with partitions of some MiB, each with the same small file system at its beginning."""
    empty_image(path, (sum(sizes) + 4) * MIB)
    script = f"label: {label}\n" + "".join(f"size={size}MiB, type=linux\n" for size in sizes)
    subprocess.run(["sfdisk", "--quiet", str(path)], input=script, text=True, check=True)
    start = 1
    for size in sizes:
        copy = ["dd", f"if={file_system}", f"of={path}", "bs=1M", f"seek={start}", "conv=notrunc,sparse"]
        run_tool(*copy, "status=none")
        start += size
    return path


def cut(image: Path, path: Path, size: int) -> Path:
    run_tool("cp", "--sparse=always", str(image), str(path))
    with path.open("r+b") as file:
        file.truncate(size)
    return path


@pytest.fixture(scope="module")
def home(loop_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a directory with a repository that has versions of truncated images."""
    home = tmp_path_factory.mktemp("truncated")
    files = home / "files"
    files.mkdir()
    (files / "hello").write_text("good morning\n")
    with cleared(home):
        ext4 = ext4_image(home / "ext4-whole", files, 8 * MIB)
        disks = {label: disk(home / f"{label}-whole", label, ext4, 8, 8, 8, 8) for label in ("gpt", "dos")}
        images = {label: cut(whole, home / label, 13 * MIB) for label, whole in disks.items()}
        images["nothing"] = cut(disks["dos"], home / "nothing", MIB)
        images["unused"] = cut(disk(home / "unused-whole", "dos", ext4, 16), home / "unused", 13 * MIB)
        images["ext4"] = cut(ext4, home / "ext4", 5 * MIB)
        run_tool("mkfs.xfs", "-q", str(empty_image(home / "xfs-whole", 320 * MIB)))
        images["xfs"] = cut(home / "xfs-whole", home / "xfs", 200 * MIB)
        repository_of(home, images)
        yield home


def detached(home: Path, place: Path) -> None:
    assert backyfs("--quiet", "detach", place).returncode == 0
    assert left_of(home) == left_of(place.parent) == []


@pytest.mark.parametrize("label", ["gpt", "dos"])
@pytest.mark.parametrize("options", [(), ("--no-replay",)])
def test_partitions_that_extend_past_the_end_are_reported(
    home: Path, place: Path, label: str, options: tuple[str, ...]
) -> None:
    done = attach(home, label, *options, place)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = json.loads(done.stdout)
    assert (first["partition"], first["state"]) == ("1", "mounted")
    assert [(row["partition"], row["state"], row["size_bytes"]) for row in others] == [
        ("2", "truncated", 4 * MIB),
        ("3", "truncated", 0),
        ("4", "truncated", 0),
    ]
    missing = f"its last {4 * MIB} bytes are past the end of the image, so it cannot be mounted ("
    assert others[0]["remark"].startswith(missing)
    outside = f"all of its {8 * MIB} bytes are past the end of the image, so it cannot be mounted"
    assert [row["remark"] for row in others[1:]] == [outside, outside]
    assert (place / "1" / "hello").read_text() == "good morning\n"
    detached(home, place)


def test_a_file_system_that_ends_before_its_partition_is_mounted_with_a_remark(home: Path, place: Path) -> None:
    (row,) = json.loads(attach(home, "unused", place).stdout)
    assert (row["state"], row["remark"]) == ("mounted", f"its last {4 * MIB} bytes are past the end of the image")
    assert (place / "1" / "hello").read_text() == "good morning\n"
    detached(home, place)


@pytest.mark.parametrize(("kind", "whole", "there"), [("ext4", 8, 5), ("xfs", 320, 200)])
def test_a_truncated_file_system_without_partitions_is_reported(
    home: Path, place: Path, kind: str, whole: int, there: int
) -> None:
    done = attach(home, kind, place)
    assert done.returncode == MOUNT_ERROR
    (row,) = json.loads(done.stdout)
    fact = f"its file system has {whole * MIB} bytes, but only {there * MIB} of them are in the image"
    assert row["state"] == "truncated"
    assert row["remark"].startswith(f"{fact}, so it cannot be mounted (")
    detached(home, place)


def test_an_image_without_any_data_of_its_partitions_is_an_error(home: Path, place: Path) -> None:
    done = attach(home, "nothing", place)
    assert done.returncode == MOUNT_ERROR
    outside = f"all of its {8 * MIB} bytes are past the end of the image, so it cannot be mounted"
    assert f"(1: {outside}; 2: {outside}; 3: " in done.stderr
    assert not place.exists()
    assert left_of(home) == []


def test_the_same_is_reported_through_an_existing_mount(home: Path, place: Path) -> None:
    with mounting(home / "repository" / "backyfs.cfg", place.with_name("mount")):
        rows = json.loads(attach(home, "dos", place).stdout)
        assert [row["state"] for row in rows] == ["mounted", "truncated", "truncated", "truncated"]
        assert backyfs("--quiet", "detach", place).returncode == 0
