"""`backyfs detach`: in use, twice, after the mount or attach was killed; and things that belong to others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.host.loops import list_loops
from backyfs.host.mounttable import mount_at
from tests.support.attaching import MIB, by_hand, cleared, config_of, disk_of, empty_image, left_of, repository_of
from tests.support.images import ext4_image
from tests.support.program import BACKYFS, PATIENCE_S, backyfs, ends, kill_mount, mounting, process_of

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("loop_devices")

MOUNT_ERROR = 10


@pytest.fixture(scope="module")
def home(loop_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a directory with a repository with one version: a disk with two file systems and free space."""
    home = tmp_path_factory.mktemp("detach")
    files = home / "files"
    files.mkdir()
    (files / "hello").write_text("good morning\n")
    with (files / "image").open("wb") as image:
        image.truncate(MIB)
    with cleared(home):
        first, second = (ext4_image(home / name, files, 8 * MIB) for name in ("first", "second"))
        partitions = {first: "linux", empty_image(home / "empty", MIB): "linux", second: "linux"}
        repository_of(home, {"disk": disk_of(home / "disk", partitions)})
        yield home


def attach(home: Path, place: Path) -> dict[str, str]:
    """Attach the disk; return its loop devices by partition."""
    done = backyfs("-c", config_of(home), "--json", "attach", "disk@latest", place)
    assert (done.returncode, done.stderr) == (0, "")
    return {row["partition"]: row["device"] for row in json.loads(done.stdout) if row["device"]}


def detach(place: Path) -> subprocess.CompletedProcess[str]:
    return backyfs("--quiet", "detach", place)


def nothing_is_left(home: Path, place: Path) -> None:
    assert left_of(home) == left_of(place.parent) == []
    assert not place.exists()


def refusal(place: Path) -> str:
    done = detach(place)
    assert done.returncode == MOUNT_ERROR
    (line,) = done.stderr.splitlines()
    return line.removeprefix("backyfs: error: ")


@contextmanager
def sitting_in(directory: Path) -> Iterator[int]:
    """Run a process with this working directory."""
    with subprocess.Popen(["sleep", "60"], cwd=directory) as process:
        try:
            yield process.pid
        finally:
            process.kill()


# Use by others.


def test_processes_in_a_file_system_are_named_and_the_rest_is_detached(home: Path, place: Path) -> None:
    devices = attach(home, place)
    with sitting_in(place / "1") as pid:
        assert refusal(place) == (
            f"{place}/1 is still mounted: it is busy, used by sleep (pid {pid}, working directory); end that, then run "
            "this again"
        )
        assert (place / "1" / "hello").read_text() == "good morning\n"
        assert devices["3"] not in left_of(home)
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_a_process_with_an_open_device_is_named(home: Path, place: Path) -> None:
    device = attach(home, place)["1"]
    with open(device, "rb"):
        line = refusal(place)
        assert line.startswith(f"{device} is in use by ")
        assert f"(pid {os.getpid()}, open file)" in line
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_a_process_with_the_open_image_is_named(home: Path, place: Path) -> None:
    attach(home, place)
    (version,) = (place / ".backyfs" / "mount" / "by_version_uid").iterdir()
    with (version / "data").open("rb"):
        line = refusal(place)
    assert line.startswith(f"{place}/.backyfs/mount is still mounted: it is busy, used by ")
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_manual_mounts_are_unmounted_too(home: Path, place: Path) -> None:
    device = attach(home, place)["1"]
    subprocess.run(["mount", "-t", "tmpfs", "none", str(place / "3")], check=True)
    subprocess.run(["mount", "-o", "ro,noload", device, str(place.with_name("elsewhere"))], check=False)
    with by_hand(device, place.with_name("elsewhere"), "-o", "ro,noload"):
        assert detach(place).returncode == 0
        assert not os.path.ismount(place.with_name("elsewhere"))
    nothing_is_left(home, place)


def test_a_foreign_device_on_the_mount_is_reported_and_kept(home: Path, place: Path) -> None:
    attach(home, place)
    (version,) = (place / ".backyfs" / "mount" / "by_version_uid").iterdir()
    done = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(version / "partitions" / "1")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    device = done.stdout.strip()
    line = refusal(place)
    assert "is in use by loop devices that attach did not make; " in line
    assert f"`losetup --detach {device}`" in line
    assert left_of(home) == [device]
    subprocess.run(["losetup", "--detach", device], check=True)
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_a_device_on_a_file_in_a_backup_is_reported(home: Path, place: Path) -> None:
    attach(home, place)
    done = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", str(place / "3" / "image")],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    device = done.stdout.strip()
    try:
        assert refusal(place) == (
            f"{place}/3 is still mounted: it is busy, {device} is stacked on it; run `losetup --detach` for it, then "
            "run this again"
        )
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert detach(place).returncode == 0


def test_a_device_taken_over_by_another_program_is_kept(home: Path, place: Path) -> None:
    device = attach(home, place)["1"]
    subprocess.run(["umount", str(place / "1")], check=True)
    subprocess.run(["losetup", "--detach", device], check=True)
    image = empty_image(place.with_name("foreign"), MIB)
    subprocess.run(["losetup", device, str(image)], check=True)
    assert detach(place).returncode == 0
    (loop,) = [loop for loop in list_loops() if loop.device == device]
    assert loop.backing_file == str(image)
    assert not place.exists()


def test_the_same_partition_attached_by_others_is_kept(home: Path, place: Path) -> None:
    with mounting(config_of(home), place.with_name("mount")) as at:
        partition = at / "by_name/disk/latest/partitions/1"
        with by_hand(partition, place.with_name("files"), "-o", "loop,ro,noload") as files:
            attach(home, place)
            assert detach(place).returncode == 0
            assert (files / "hello").read_text() == "good morning\n"
        assert not place.exists()


def test_foreign_files_in_the_directory_are_kept(home: Path, place: Path) -> None:
    attach(home, place)
    (place / "notes").write_text("mine")
    done = backyfs("detach", place)
    assert done.returncode == 0
    assert done.stdout == (
        f"{place} is detached\n{place} was kept: it contains more than `attach` put there\n"
    )
    assert os.listdir(place) == ["notes"]


# Again, and without names.


def test_detaching_twice_finds_nothing_to_detach(home: Path, place: Path) -> None:
    attach(home, place)
    assert detach(place).returncode == 0
    assert refusal(place).startswith(f"nothing is attached in {place}")


# In separate namespaces, only the script attaches anything, because all other mounts are removed from its copy.
# Everything left there ends with the script.
ALONE = """
if test -d /run/backyfs; then mount -t tmpfs none /run/backyfs; fi
"$1" -c 'import subprocess
from backyfs.host.mounttable import is_below, list_mounts
from backyfs.host.records import list_attachments
others = list_attachments()
for mount in reversed(list_mounts()):
    if any(is_below(mount.mountpoint, directory) for directory in others):
        subprocess.run(["umount", "--lazy", "--", mount.mountpoint], check=True)'
"$2" -q -c "$3" attach disk@latest "$4"
exec "$2" --json detach
"""


def test_the_only_directory_need_not_be_given(home: Path, place: Path) -> None:
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    arguments = [ALONE, "sh", sys.executable, BACKYFS, str(config_of(home)), str(place)]
    done = subprocess.run(
        ["setpriv", "--pdeathsig=KILL", "--", *namespaces, "sh", "-euc", *arguments],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = json.loads(done.stdout)
    assert row["directory"] == str(place)
    assert sorted(row["unmounted"]) == sorted([f"{place}/1", f"{place}/3", f"{place}/.backyfs/mount"])
    nothing_is_left(home, place)


def test_with_several_directories_one_must_be_given(home: Path, place: Path) -> None:
    second = place.with_name("second")
    attach(home, place)
    attach(home, second)
    done = backyfs("detach")
    assert done.returncode == 1
    assert str(place) in done.stderr
    assert str(second) in done.stderr
    for directory in (place, second):
        assert detach(directory).returncode == 0
    nothing_is_left(home, place)


def test_umount_names_the_command_that_detaches(home: Path, place: Path) -> None:
    attach(home, place)
    done = backyfs("umount", place)
    assert done.stderr == (
        f"backyfs: error: {place} contains an attached version; run `backyfs detach {place}`\n"
    )


# After a kill.


@pytest.mark.parametrize("in_use", [False, True])
def test_after_the_mount_was_killed_everything_can_be_detached(home: Path, place: Path, in_use: bool) -> None:
    attach(home, place)
    kill_mount(place / ".backyfs" / "mount")
    if in_use:
        with sitting_in(place / "1"):
            assert detach(place).returncode == 0
            assert mount_at(str(place / "1")) is None
    else:
        assert detach(place).returncode == 0
    assert not place.exists()
    assert left_of(place.parent) == []


def test_the_next_attach_clears_a_dead_attachment(home: Path, place: Path) -> None:
    attach(home, place)
    kill_mount(place / ".backyfs" / "mount")
    done = backyfs("-c", config_of(home), "-m", "attach", "disk@latest", place)
    assert done.returncode == 0
    assert (place / "3" / "hello").read_text() == "good morning\n"
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_a_lazily_unmounted_mount_does_not_matter(home: Path, place: Path) -> None:
    attach(home, place)
    subprocess.run(["umount", "--lazy", str(place / ".backyfs" / "mount")], check=True)
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_after_a_reboot_only_directories_remain_to_be_removed(home: Path, place: Path) -> None:
    (place / ".backyfs").mkdir(parents=True)
    (place / "devices").mkdir()
    (place / "1").mkdir()
    (place / "devices" / "1").symlink_to("/dev/loop77")
    record = {
        "version_uid": "0" * 36, "mountpoint": f"{place}/.backyfs/mount", "made": [str(place)], "is_complete": True,
    }  # fmt: skip
    (place / ".backyfs" / "record.json").write_text(json.dumps(record))
    assert detach(place).returncode == 0
    assert not place.exists()


KILLED = """
import os, signal, subprocess, sys

place, config, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 0

def after(function):
    def wrapper(*arguments, **options):
        global count
        result = function(*arguments, **options)
        if counts(arguments):
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper

def counts(arguments):
    return place in str(arguments) or "losetup" in str(arguments)

class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        after(super().__init__)(*arguments, **options)

from backyfs.cli.main import run
subprocess.Popen = Popen
for name in ("mkdir", "replace", "symlink"):
    setattr(os, name, after(getattr(os, name)))
status = run(["-q", "-c", config, "attach", "disk@latest", place])
print("steps:", count)
sys.exit(status)
"""
# Directory, hidden directory, record, mountpoint; the content of each of three partitions; for two of them directory of
# links, link, device, directory and mount; the record again. The kill comes when a program has started, not ended.
STEPS = 19


@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_an_attach_killed_after_any_step_can_be_undone(home: Path, place: Path, step: int) -> None:
    arguments = [sys.executable, "-c", KILLED, str(place), str(config_of(home)), str(step)]
    assert subprocess.run(arguments, check=False, timeout=PATIENCE_S).returncode == -signal.SIGKILL
    # Repeated, because a program started by attach may still have been running.
    said = [detach(place).stderr for _ in range(3)]
    assert said[-1].startswith(f"backyfs: error: nothing is attached in {place}"), said
    if place.exists():  # empty, made before anything was recorded
        place.rmdir()
    assert left_of(home) == left_of(place.parent) == []


def test_a_killed_attach_can_be_run_again(home: Path, place: Path) -> None:
    arguments = [sys.executable, "-c", KILLED, str(place), str(config_of(home)), "9"]
    assert subprocess.run(arguments, check=False, timeout=PATIENCE_S).returncode == -signal.SIGKILL
    done = backyfs("-c", config_of(home), "-m", "attach", "disk@latest", place)
    assert done.returncode == 0
    assert (place / "1" / "hello").read_text() == "good morning\n"
    assert detach(place).returncode == 0
    nothing_is_left(home, place)


def test_an_interrupted_attach_leaves_nothing(home: Path, place: Path) -> None:
    program = KILLED.replace("SIGKILL", "SIGINT")
    arguments = [sys.executable, "-c", program, str(place), str(config_of(home)), "9"]
    done = subprocess.run(arguments, check=False, timeout=PATIENCE_S, capture_output=True, text=True)
    assert done.returncode == 130
    nothing_is_left(home, place)


def test_the_process_of_the_mount_ends_with_it(home: Path, place: Path) -> None:
    attach(home, place)
    process = os.pidfd_open(process_of(place / ".backyfs" / "mount"))
    try:
        assert detach(place).returncode == 0
        assert ends(process, timeout_s=0)
    finally:
        os.close(process)
