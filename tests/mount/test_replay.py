"""`backyfs attach` shows the files as a boot would: journals are replayed, and what they write is discarded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.host.loops import list_loops
from backyfs.host.mounttable import mount_at
from tests.support.attaching import (
    MIB,
    attach,
    attached,
    by_hand,
    cleared,
    config_of,
    disk_of,
    empty_image,
    left_of,
    repository_of,
)
from tests.support.images import ntfs_log, run_tool
from tests.support.program import backyfs, mounting, process_ending, process_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.usefixtures("loop_devices"), pytest.mark.slow]

MOUNT_ERROR = 10
SYNCED = "synced before the snapshot\n"
BARE = "files written shortly before the backup can be missing or damaged"
KINDS = {
    "ext3": (32, ("mkfs.ext3", "-q", "-F")),
    "ext4": (32, ("mkfs.ext4", "-q", "-F")),
    "xfs": (320, ("mkfs.xfs", "-q")),
    "btrfs": (128, ("mkfs.btrfs", "-q")),
}


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, text: str = SYNCED) -> None:
    path.write_text(text)
    sync(path)


def in_use(image: Path, directory: Path, copy: Path, *options: str) -> Path:
    """Return a copy of a file system in use: `synced` is only in its journal, `settled` is in its place."""
    with by_hand(image, directory, "-o", ",".join(("loop", *options))) as files:
        write(files / "settled")
    with by_hand(image, directory, "-o", ",".join(("loop", *options))) as files:
        write(files / "synced")
        run_tool("cp", "--sparse=always", str(image), str(copy))
    return copy


@contextmanager
def loop_device(image: Path, offset: int, size: int) -> Iterator[str]:
    done = run_tool("losetup", "--find", "--show", f"--offset={offset}", f"--sizelimit={size}", str(image))
    device = done.decode().strip()
    try:
        yield device
    finally:
        run_tool("losetup", "--detach", device)


def with_journal_elsewhere(home: Path, kind: str) -> Path:
    """Return a disk in use, whose second partition contains the journal of the first."""
    sizes = (320 * MIB, 68 * MIB) if kind == "xfs" else (32 * MIB, 16 * MIB)
    parts = [empty_image(home / f"{kind}-{number}", size) for number, size in enumerate(sizes)]
    disk = disk_of(home / f"{kind}-disk", dict.fromkeys(parts, "linux"))
    with ExitStack() as opened:
        start = MIB
        devices = []
        for size in sizes:
            devices.append(opened.enter_context(loop_device(disk, start, size)))
            start += size
        data, journal = devices
        if kind == "xfs":
            run_tool("mkfs.xfs", "-q", "-f", "-l", f"logdev={journal},size=64m", data)
            options = ["-o", f"logdev={journal}"]
        else:
            run_tool("mke2fs", "-q", "-b", "4096", "-O", "journal_dev", journal)
            run_tool("mke2fs", "-q", "-b", "4096", "-t", kind, "-J", f"device={journal}", data)
            options = []
        with by_hand(data, home / "by hand", *options) as files:
            write(files / "settled")
        with by_hand(data, home / "by hand", *options) as files:
            write(files / "synced")
            copy = home / f"{kind}-elsewhere"
            run_tool("cp", "--sparse=always", str(disk), str(copy))
    return copy


def part_of(disk: Path, path: Path, size: int) -> Path:
    """Return the first partition of a disk as a separate image."""
    run_tool("dd", f"if={disk}", f"of={path}", "bs=1M", "skip=1", f"count={size // MIB}", "conv=sparse", "status=none")
    return path


def with_damaged_journal(image: Path, path: Path) -> Path:
    shutil.copy(image, path)
    block = int(run_tool("debugfs", "-R", "blocks <8>", str(image)).split()[0])
    size = int.from_bytes(image.read_bytes()[1024 + 0x18 : 1024 + 0x1C], "little")
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"\xff" * 1024, block * 1024 << size)
    return path


def ntfs_in_use(path: Path) -> Path:
    run_tool("mkntfs", "-q", "-F", "-Q", str(empty_image(path, 8 * MIB)))
    image = bytearray(path.read_bytes())
    ntfs_log(image, client=0, flags=0)
    path.write_bytes(image)
    return path


@pytest.fixture(scope="module")
def home(loop_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a directory with a repository that has versions of file systems in use."""
    home = tmp_path_factory.mktemp("replay")
    with cleared(home):
        images = {}
        for kind, (size, command) in KINDS.items():
            image = empty_image(home / f"{kind}-fs", size * MIB)
            subprocess.run([*command, str(image)], check=True, capture_output=True)
            images[kind] = in_use(image, home / "by hand", home / kind)
        for kind in ("ext4", "xfs"):
            images[f"{kind}-elsewhere"] = with_journal_elsewhere(home, kind)
        images["ext4-alone"] = part_of(images["ext4-elsewhere"], home / "ext4-alone", 32 * MIB)
        images["xfs-alone"] = part_of(images["xfs-elsewhere"], home / "xfs-alone", 320 * MIB)
        images["damaged"] = with_damaged_journal(images["ext4"], home / "damaged")
        images["two"] = disk_of(home / "two", {images["damaged"]: "linux", images["ext3"]: "linux"})
        images["ntfs"] = ntfs_in_use(home / "ntfs")
        repository_of(home, images)
        yield home


def detached(home: Path, place: Path) -> None:
    done = backyfs("--quiet", "detach", place)
    assert (done.returncode, done.stderr) == (0, "")
    assert left_of(home) == left_of(place.parent) == []
    assert not place.exists()


def files_of(directory: Path) -> set[str]:
    return set(os.listdir(directory)) - {"lost+found"}


# Replayed journals.


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_synced_before_the_snapshot_appears(home: Path, place: Path, kind: str) -> None:
    (row,) = attached(home, kind, place)
    assert (row["state"], row["remark"]) == ("mounted", "")
    assert (place / "data" / "synced").read_text() == SYNCED
    assert files_of(place / "data") == {"settled", "synced"}
    detached(home, place)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bare_image_is_shown_on_request(home: Path, place: Path, kind: str) -> None:
    (row,) = attached(home, kind, "--no-replay", place)
    assert row["state"] == "mounted"
    assert row["remark"] == f"the bare image: its journal was not replayed, as requested, so {BARE}"
    assert files_of(place / "data") == {"settled"}
    detached(home, place)


def test_the_output_explains_why_files_may_be_missing(home: Path, place: Path) -> None:
    done = backyfs("-c", config_of(home), "attach", "--no-replay", "ext4@latest", place)
    assert f"\nThe image: the bare image: its journal was not replayed, as requested, so {BARE}.\n" in done.stdout
    detached(home, place)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_journal_in_another_partition_is_replayed(home: Path, place: Path, kind: str) -> None:
    rows = attached(home, f"{kind}-elsewhere", place)
    assert [(row["partition"], row["state"]) for row in rows] == [("1", "mounted"), ("2", "nothing")]
    assert files_of(place / "1") == {"settled", "synced"}
    detached(home, place)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_journal_in_another_partition_is_left_alone_for_the_bare_image(
    home: Path, place: Path, kind: str
) -> None:
    row, _ = attached(home, f"{kind}-elsewhere", "--no-replay", place)
    assert row["state"] == "mounted"
    assert files_of(place / "1") == {"settled"}
    detached(home, place)


# Discarded writes.


def test_no_write_is_kept(home: Path, place: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        attached(home, "ext4", place)
    assert (place / "data" / "synced").exists()
    assert list(scratch.iterdir()) == []
    detached(home, place)
    attached(home, "ext4", "--no-replay", place)
    assert files_of(place / "data") == {"settled"}
    detached(home, place)
    restored = tmp_path / "restored"
    assert backyfs("-c", config_of(home), "restore", "ext4@latest", restored).returncode == 0
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (restored, home / "ext4")]
    assert digests[0] == digests[1]


def test_readers_of_the_image_see_the_original_bytes(home: Path, place: Path) -> None:
    (row,) = attached(home, "ext4", place)
    image = Path(str(row["image"]))
    assert image.read_bytes() == (home / "ext4").read_bytes()
    device = Path(str(row["device"]))
    with device.open("rb") as file:
        assert file.read() != image.read_bytes()
    detached(home, place)


def test_nothing_is_left_after_the_mount_was_killed(home: Path, place: Path) -> None:
    attached(home, "xfs", place)
    at = place / ".backyfs" / "mount"
    pid = process_of(at)
    with process_ending(pid):
        os.kill(pid, signal.SIGKILL)
    detached(home, place)


def test_an_attachment_whose_mount_was_killed_is_replaced(home: Path, place: Path) -> None:
    attached(home, "xfs", place)
    pid = process_of(place / ".backyfs" / "mount")
    with process_ending(pid):
        os.kill(pid, signal.SIGKILL)
    done = attach(home, "ext4", place)
    assert done.returncode == 0
    assert files_of(place / "data") == {"settled", "synced"}
    detached(home, place)


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_can_be_attached_several_times_at_once(home: Path, place: Path, kind: str) -> None:
    others = [place.with_name(name) for name in ("second", "third")]
    for each in (place, *others):
        attached(home, kind, each)
    assert all(files_of(each / "data") == {"settled", "synced"} for each in (place, *others))
    for each in others:
        assert backyfs("detach", each).returncode == 0
    assert (place / "data" / "synced").read_text() == SYNCED
    detached(home, place)


# Journals that cannot be replayed.


def test_a_damaged_journal_is_an_error_and_the_bare_image_is_shown(home: Path, place: Path) -> None:
    done = attach(home, "damaged", place)
    assert done.returncode == MOUNT_ERROR
    assert "the journal of the image could not be replayed: the newest files may be missing" in done.stderr
    (row,) = json.loads(done.stdout)
    assert row["state"] == "bare"
    assert row["remark"].startswith("the bare image: its journal could not be replayed (")
    assert row["remark"].endswith(f", so {BARE}")
    assert row["commands"][1] == f"e2fsck -fy /mnt/by_version_uid/{row['uid']}/data"
    assert files_of(place / "data") == {"settled"}
    detached(home, place)


def test_the_printed_commands_repair_the_file_system(home: Path, place: Path, tmp_path: Path) -> None:
    (row,) = json.loads(attach(home, "damaged", place).stdout)
    detached(home, place)
    (tmp_path / "at").mkdir()
    (tmp_path / "mnt").mkdir()
    places = {"/var/tmp/repaired": str(tmp_path / "layer"), "/mnt": str(tmp_path / "mnt"), "DIR": str(tmp_path / "at")}
    commands = [command.split(" ") for command in row["commands"]]
    mount, check, last = (
        [next((word.replace(old, new) for old, new in places.items() if old in word), word) for word in command]
        for command in commands
    )
    assert backyfs("-c", config_of(home), *mount[1:]).returncode == 0
    assert subprocess.run(check, check=False, capture_output=True).returncode in {0, 1}  # 1: errors were corrected
    subprocess.run(last, check=True)
    assert "settled" in files_of(tmp_path / "at")
    assert backyfs("umount", tmp_path / "mnt").returncode == 0
    assert left_of(home) == []


def test_a_damaged_journal_does_not_prevent_the_replay_of_others(home: Path, place: Path) -> None:
    done = attach(home, "two", place)
    assert done.returncode == MOUNT_ERROR
    assert "the journal of partition 1 could not be replayed" in done.stderr
    first, second = json.loads(done.stdout)
    assert (first["state"], second["state"], second["remark"]) == ("bare", "mounted", "")
    assert files_of(place / "2") == {"settled", "synced"}
    detached(home, place)


def test_a_lack_of_room_for_the_writes_of_a_journal_is_reported(home: Path, place: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "full"
    with by_hand("none", scratch, "-t", "tmpfs", "-o", "size=16k"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        done = attach(home, "xfs", place)
        (row,) = json.loads(done.stdout)
        assert (done.returncode, row["state"]) == (MOUNT_ERROR, "bare")
    assert f"; there was no room for it in {scratch}, set TMPDIR to a directory with more room), so" in row["remark"]
    assert files_of(place / "data") == {"settled"}
    detached(home, place)


def test_a_missing_directory_for_temporary_files_is_reported(home: Path, place: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path / "missing"))
        done = attach(home, "ext4", place)
    assert done.returncode == MOUNT_ERROR
    assert f"{tmp_path}/missing cannot store the writes of a journal: No such file or directory" in done.stderr
    assert not place.exists()
    assert left_of(home) == []


def test_a_journal_that_is_not_in_the_version_is_an_error(home: Path, place: Path) -> None:
    done = attach(home, "ext4-alone", place)
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["state"]) == (MOUNT_ERROR, "bare")
    assert "(it is on a device that this version does not contain)" in row["remark"]
    assert files_of(place / "data") == {"settled"}
    detached(home, place)


def test_a_journal_that_linux_does_not_replay_is_an_error(home: Path, place: Path) -> None:
    done = attach(home, "ntfs", place)
    (row,) = json.loads(done.stdout)
    assert (done.returncode, row["state"]) == (MOUNT_ERROR, "bare")
    assert row["remark"] == (
        f"the bare image: its journal could not be replayed (Linux does not replay it), so {BARE}"
    )
    assert row["commands"][1] == f"ntfsrecover /mnt/by_version_uid/{row['uid']}/data"
    detached(home, place)
    (row,) = attached(home, "ntfs", "--no-replay", place)
    assert row["state"] == "mounted"
    assert row["remark"] == f"the bare image: its journal was not replayed, as requested, so {BARE}"
    detached(home, place)


def test_a_log_that_is_not_in_the_version_is_reported(home: Path, place: Path) -> None:
    done = attach(home, "xfs-alone", place)
    assert done.returncode == MOUNT_ERROR
    assert "data: its log is on a device that this version does not contain" in done.stderr
    assert not place.exists()


# Existing mounts.


def test_an_existing_mount_is_not_used_if_a_journal_must_be_replayed(home: Path, place: Path) -> None:
    with mounting(config_of(home), place.with_name("mount")) as at:
        (row,) = attached(home, "ext4", place)
        assert str(row["image"]).startswith(f"{place}/.backyfs/mount/")
        assert files_of(place / "data") == {"settled", "synced"}
        assert not [loop.device for loop in list_loops() if loop.backing_file.startswith(f"{at}/")]
        assert backyfs("-q", "detach", place).returncode == 0
        assert not place.exists()
        assert mount_at(str(at)) is not None


def test_an_existing_mount_is_used_for_the_bare_image(home: Path, place: Path) -> None:
    with mounting(config_of(home), place.with_name("mount")) as at:
        (row,) = attached(home, "ext4", "--no-replay", place)
        assert str(row["image"]).startswith(f"{at}/by_version_uid/")
        assert files_of(place / "data") == {"settled"}
        assert backyfs("-q", "detach", place).returncode == 0
