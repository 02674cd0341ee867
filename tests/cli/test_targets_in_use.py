"""A target in use by others, or a file of the repository, is refused whatever name leads to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.images import ext4_image, random_bytes, random_image, run_tool
from tests.support.program import BACKYFS
from tests.support.repositories import BLOCK, back_up
from tests.support.stored import blob_of, file_of
from tests.unit.test_sources import loop_device

MIB = 1 << 20
PATIENCE_S = 60
SIZE = 20 * BLOCK
IMAGE = random_bytes(SIZE, 3)
OVERWRITING = ["--force", "--differential", "--continue-from=1", "--force --offset 4096 --length 4096"]
POSIX_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 1, 100)
print("locked", flush=True)
sys.stdin.read()
"""
BACKYFS_LOCK = """
import sys
from backyfs.host.occupants import lock
file = open(sys.argv[1], "r+b")
assert lock(file.fileno()) is None
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def version(repository, tmp_path):
    return back_up(repository, random_image(tmp_path / "image", SIZE, 3)).version


@pytest.fixture
def disk(tmp_path):
    """Make an image with a file system, larger than the image restored to it."""
    content = tmp_path / "content"
    content.mkdir()
    return ext4_image(tmp_path / "disk", content, 4 * MIB)


@contextmanager
def mounted(source, place, *options):
    place.mkdir(exist_ok=True)
    run_tool("mount", *options, str(source), str(place))
    try:
        yield
    finally:
        run_tool("umount", str(place))


@contextmanager
def partitioned(disk):
    """Make a disk with a file system in its partition; yield its loop device and the partition's."""
    with disk.open("wb") as file:
        file.truncate(8 * MIB)
    run_tool("sgdisk", "--new=1:2048:+4M", str(disk))
    with loop_device(disk) as device:
        run_tool("partx", "--add", device)
        try:
            run_tool("mkfs.ext4", "-q", f"{device}p1")
            yield disk, device
        finally:
            end = time.monotonic() + PATIENCE_S
            # A mount namespace created in the meantime keeps the partition mounted until it ends.
            while subprocess.run(["partx", "--delete", device], capture_output=True, check=False).returncode != 0:
                assert time.monotonic() < end, "the partition is still in use"
                time.sleep(0.05)


@contextmanager
def bound(source, place):
    """Bind-mount a file or directory at a second place."""
    if source.is_dir():
        place.mkdir()
    else:
        place.touch()
    run_tool("mount", "--bind", str(source), str(place))
    try:
        yield place
    finally:
        run_tool("umount", str(place))


@contextmanager
def running(*words, until):
    """Start a program and wait until it prints a line with a text; it ends at the end of its stdin."""
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert any(until in line for line in process.stdout), "it ended"
            yield process
        finally:
            process.stdin.close()


@contextmanager
def qemu(path, *options):
    """Make QEMU use an image, as it does for a virtual machine."""
    with subprocess.Popen(
        ["qemu-io", *options, "-f", "raw", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write("read 0 512\n")
            process.stdin.flush()
            assert any("read 512/512 bytes" in line for line in process.stdout), "it cannot read the image"
            yield
        finally:
            process.stdin.close()


def refused(call, version, target, *expected, mode="--force"):
    """Try to restore to a target; fail unless this is refused and the target is unchanged."""
    before = Path(target).read_bytes()
    status, out, err = call("restore", *mode.split(), version.uid, target)
    assert (status, out) == (8, "")
    assert err.startswith(f"backyfs: error: {target} ")
    assert err.count("\n") == 1
    for words in expected:
        assert words in err
    after = Path(target).read_bytes()
    assert after.startswith(before)  # a log now contains the refusal
    assert IMAGE[:BLOCK] not in after


# Loop devices


@pytest.mark.parametrize("mode", OVERWRITING)
def test_a_file_that_a_mounted_loop_device_is_backed_by_is_refused(call, version, disk, tmp_path, mode):
    with loop_device(disk) as device, mounted(device, tmp_path / "place"):
        commands = f"run `umount {tmp_path}/place`, `losetup --detach {device}` first"
        refused(call, version, disk, f"{device} is backed by it", commands, mode=mode)


@pytest.mark.parametrize("options", [[], ["--read-only"], ["--offset=1048576"]], ids=["all", "read-only", "part"])
def test_an_unmounted_loop_device_counts_too(call, version, disk, options):
    with loop_device(disk, *options) as device:
        refused(call, version, disk, "is in use", f"run `losetup --detach {device}` first")


@pytest.mark.parametrize("name", ["hard link", "symbolic link", "bind mount", "renamed"])
def test_the_file_of_a_loop_device_is_recognized_under_every_name(call, version, disk, tmp_path, name):
    other = tmp_path / "other"
    with ExitStack() as opened:
        device = opened.enter_context(loop_device(disk))
        if name == "hard link":
            os.link(disk, other)
        elif name == "symbolic link":
            other.symlink_to(disk)
        elif name == "bind mount":
            opened.enter_context(bound(disk, other))
        else:
            disk.rename(other)
        refused(call, version, other, f"{device} is backed by it")


def test_a_loop_device_set_up_in_another_mount_namespace_counts(call, version, disk, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    # The shell holds the device open, and the kernel detaches it when the shell ends, even if this test is killed.
    script = """
        mount --bind "$1" "$2"; device=$(losetup --find --show "$2/disk"); exec 3<"$device"; losetup --detach "$device"
        echo "$device"; read -r _ || true
    """
    command = ["unshare", "--mount", "sh", "-euc", script, "sh", str(tmp_path), str(tmp_path / "elsewhere")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        device = shell.stdout.readline().strip()
        assert device
        refused(call, version, disk, f"{device} is backed by it")
        shell.communicate()


def test_a_new_file_with_the_name_of_a_deleted_one_is_free(call, version, disk):
    with loop_device(disk) as device:
        before = Path(device).read_bytes()
        disk.unlink()
        disk.write_bytes(bytes(MIB))
        assert call("restore", "--force", version.uid, disk)[0] == 0
        assert Path(device).read_bytes() == before
    assert disk.read_bytes() == IMAGE


def test_a_mounted_partition_of_a_loop_device_is_reported(call, version, tmp_path):
    with partitioned(tmp_path / "disk") as (disk, device), mounted(f"{device}p1", tmp_path / "place"):
        refused(call, version, disk, f"{device}p1 is mounted on {tmp_path}/place")


def test_a_loop_device_used_as_swap_is_reported(call, version, disk):
    with loop_device(disk) as device:
        run_tool("mkswap", device)
        run_tool("swapon", device)
        try:
            refused(call, version, disk, f"{device} is swap, run `swapoff {device}`".replace(", run", "; run"))
            status, _, err = call("restore", "--force", version.uid, device)
            assert (status, "is in use" in err) == (8, True)
        finally:
            run_tool("swapoff", device)


def test_a_block_device_that_backs_a_loop_device_is_refused(call, version, disk):
    """The kernel allows others to write to it."""
    with loop_device(disk) as lower, loop_device(Path(lower)) as upper:
        refused(call, version, lower, f"{upper} is backed by it")


def test_a_loop_device_itself_can_be_a_target(call, version, disk):
    with loop_device(disk) as device:
        assert call("restore", "--force", version.uid, device)[0] == 0
        assert Path(device).read_bytes()[:SIZE] == IMAGE


def test_a_disk_with_a_mounted_partition_is_refused(call, version, tmp_path):
    with partitioned(tmp_path / "disk") as (_, device), mounted(f"{device}p1", tmp_path / "place"):
        status, _, err = call("restore", "--force", version.uid, device)
        assert (status, "is in use" in err) == (8, True)


# Locks


@pytest.mark.parametrize("mode", OVERWRITING)
def test_an_image_locked_by_a_virtual_machine_is_refused(call, version, disk, mode):
    with qemu(disk):
        refused(call, version, disk, "is in use: qemu-io (pid ", " has locked it; shut it down", mode=mode)


@pytest.mark.parametrize("options", [["-r"], ["-r", "-U"]], ids=["read-only", "sharing"])
def test_an_image_that_a_virtual_machine_only_reads_is_refused(call, version, disk, options):
    with qemu(disk, *options):
        refused(call, version, disk, "qemu-io (pid ")


def test_a_locked_image_is_recognized_by_a_hard_link(call, version, disk, tmp_path):
    os.link(disk, tmp_path / "other")
    with qemu(disk):
        refused(call, version, tmp_path / "other", "has locked it")


def test_an_image_is_free_again_after_a_virtual_machine_ends(call, version, disk):
    with qemu(disk):
        pass
    assert call("restore", "--force", version.uid, disk)[0] == 0


@pytest.mark.parametrize("program", [POSIX_LOCK, BACKYFS_LOCK], ids=["posix", "another restore"])
def test_an_image_locked_by_another_process_is_refused(call, version, disk, program):
    with running(sys.executable, "-c", program, str(disk), until="locked"):
        refused(call, version, disk, "is in use: python", "has locked it")


def test_a_virtual_machine_does_not_start_from_an_image_being_restored(disk):
    with running(sys.executable, "-c", BACKYFS_LOCK, str(disk), until="locked"):
        done = subprocess.run(
            ["qemu-io", "-f", "raw", str(disk)], input="quit\n", capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert "lock" in done.stderr


# Standard output


def to_stdout(config, version, target):
    """Restore to a stdout that a shell has opened without emptying it."""
    with Path(target).open("r+b") as file:
        return subprocess.run(
            [BACKYFS, "-c", config, "restore", version.uid, "-"],
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
            text=True,
        )


def test_a_stdout_in_use_by_others_is_refused(config, version, disk, tmp_path):
    with loop_device(disk) as device, mounted(device, tmp_path / "place"):
        before = disk.read_bytes()
        for target, words in ((disk, f"{device} is backed by it"), (device, f"is mounted on {tmp_path}/place")):
            done = to_stdout(config, version, target)
            assert done.returncode == 8
            assert done.stderr.startswith("backyfs: error: the standard output is in use: ")
            assert words in done.stderr
        assert disk.read_bytes() == before


def test_a_stdout_that_is_a_file_of_the_repository_is_refused(config, version):
    before = config.read_bytes()
    done = to_stdout(config, version, config)
    assert done.returncode == 8
    assert "the standard output belongs to the repository itself" in done.stderr
    assert config.read_bytes() == before


# The repository's own files


@pytest.fixture
def own(config, repository, version):
    """Return existing files of the repository by their purpose."""
    (config.parent / "backyfs.log").touch()
    (config.parent / "backyfs.sqlite.before-upgrade-20260101T000000Z").write_text("a copy")
    return {
        "database": config.parent / "backyfs.sqlite",
        "journal": config.parent / "backyfs.sqlite-wal",
        "copy": config.parent / "backyfs.sqlite.before-upgrade-20260101T000000Z",
        "configuration": config,
        "key": config.parent / "backyfs.key",
        "log": config.parent / "backyfs.log",
        "block": Path(file_of(repository, blob_of(repository, version, 0))),
        "catalog": config.parent / "data" / "catalog" / "repository",
    }


OWN = ["database", "journal", "copy", "configuration", "key", "log", "block", "catalog"]


@pytest.mark.parametrize("way", ["itself", "hard link", "symbolic link", "bind mount"])
@pytest.mark.parametrize("what", OWN)
def test_a_file_of_the_repository_is_refused_under_any_name(call, version, own, tmp_path, what, way):
    target = own[what] if way == "itself" else tmp_path / "other"
    with ExitStack() as opened:
        if way == "hard link":
            os.link(own[what], target)
        elif way == "symbolic link":
            target.symlink_to(own[what])
        elif way == "bind mount":
            opened.enter_context(bound(own[what], target))
        refused(call, version, target, "belongs to the repository itself; name a target outside of it")


def test_a_loop_device_of_a_file_of_the_repository_is_refused(call, version, own):
    with loop_device(own["block"]) as lower, loop_device(Path(lower)) as upper:
        for device in (lower, upper):
            refused(call, version, device, "belongs to the repository itself")


@pytest.mark.parametrize("below", ["", "00"])
def test_a_new_file_in_the_storage_is_refused_through_a_bind_mount(call, config, version, tmp_path, below):
    shelf = config.parent / "data" / below
    shelf.mkdir(exist_ok=True)
    with bound(shelf, tmp_path / "other") as other:
        (other / "sub").mkdir()
        status, _, err = call("restore", version.uid, other / "sub" / "new")
        assert (status, "belongs to the repository itself" in err) == (8, True)
        assert list((other / "sub").iterdir()) == []


def test_a_file_beside_the_repository_can_be_a_target(call, config, version):
    for name in ("data.img", "image", "backyfs.img"):
        assert call("restore", version.uid, config.parent / name)[0] == 0
        assert (config.parent / name).read_bytes() == IMAGE


def test_a_hard_link_to_another_file_can_be_a_target(call, version, disk, tmp_path):
    os.link(disk, tmp_path / "other")
    assert call("restore", "--force", version.uid, tmp_path / "other")[0] == 0
    assert disk.read_bytes() == IMAGE


def test_metrics_do_not_replace_a_file_of_the_repository(call, own, config, tmp_path):
    own["journal"].touch()
    os.link(own["log"], tmp_path / "link")
    for path in (config.parent / "data" / "metrics.prom", own["log"], tmp_path / "link", own["journal"]):
        before = path.stat().st_ino if path.exists() else None
        status, _, err = call("--metrics-file", path, "ls")
        assert status == 0
        assert f"metrics are not written: {path}: it belongs to the repository; name another file" in err
        assert (path.stat().st_ino if path.exists() else None) == before


@pytest.mark.parametrize(
    "words",
    [
        "export disk@latest {}",
        "export --all {}",
        "export --format backy2 disk@latest {}",
        "export --all --format backy2 {}",
        "key export {}",
    ],
)
@pytest.mark.parametrize("name", ["data/new", "backyfs.sqlite-journal"])
def test_an_export_among_the_files_of_the_repository_is_refused(call, config, version, words, name):
    path = config.parent / name
    status, _, err = call(*words.format(path).split())
    assert (status, "belongs to the repository" in err) == (1, True)
    assert not path.exists()


def test_a_copy_of_the_database_does_not_overwrite_its_journal(call, config):
    database = config.parent / "backyfs.sqlite"
    for ending in ("-wal", "-journal"):
        status, _, err = call("db", "copy", f"sqlite:///{database}", f"sqlite:///{database}{ending}")
        assert status == 1
        assert f"{database}{ending} belongs to {database}" in err
    assert call("ls")[0] == 0


# The directory of devices


@pytest.fixture
def typo():
    """Return the name of a device that does not exist."""
    path = Path("/dev/backyfs-no-such-device")
    yield path
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("options", ["", "--force", "--sparse", "--offset 0 --length 4096"])
def test_a_mistyped_device_does_not_become_a_file(call, version, typo, options):
    status, _, err = call("restore", *options.split(), version.uid, typo)
    assert status == 8
    assert err == (
        f"backyfs: error: {typo}: there is no such device, and a regular file in its place would fill memory; "
        "check the name\n"
    )
    assert not typo.exists()


@pytest.mark.parametrize("way", ["dangling link", "directory link", "bind mount", "dots"])
def test_the_directory_of_devices_is_recognized_under_every_name(call, version, typo, tmp_path, way):
    with ExitStack() as opened:
        if way == "dangling link":
            target = tmp_path / "link"
            target.symlink_to(typo)
        elif way == "directory link":
            (tmp_path / "dev").symlink_to("/dev")
            target = tmp_path / "dev" / typo.name
        elif way == "bind mount":
            target = opened.enter_context(bound(Path("/dev"), tmp_path / "dev")) / typo.name
        else:
            target = Path(f"/dev/shm/../{typo.name}")
        assert call("restore", "--force", version.uid, target)[0] == 8
    assert not typo.exists()


def test_a_file_left_among_the_devices_by_mistake_is_not_overwritten(call, version, typo):
    typo.write_bytes(b"left")
    assert call("restore", "--force", version.uid, typo)[0] == 8
    assert typo.read_bytes() == b"left"


def test_a_memory_file_system_for_files_can_be_a_target(call, version):
    target = Path(f"/dev/shm/backyfs-test-{os.getpid()}")
    try:
        assert call("restore", version.uid, target)[0] == 0
        assert target.read_bytes() == IMAGE
    finally:
        target.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "words",
    [
        "export disk@latest {}",
        "export --all --format backy2 {}",
        "key export {}",
        "--metrics-file {} ls",
        "db copy sqlite:///{config}/backyfs.sqlite sqlite:///{}",
        "init -c {config}/new.cfg --data {}",
        "init -c {config}/new.cfg --db {} --data {config}/new",
        "init -c {}",
        "mount --foreground --writable {} {config}/../place",
    ],
)
def test_no_command_creates_a_file_among_the_devices(call, config, version, typo, tmp_path, words):
    (tmp_path / "place").mkdir()
    status, _, err = call(*words.format(typo, config=config.parent).split())
    assert "there is no such device" in err
    assert status == (0 if "--metrics-file" in words else 10 if "mount" in words else 6 if "--data {}" in words else 1)
    assert not os.path.lexists(typo)


def test_a_log_file_is_not_created_among_the_devices_but_may_be_a_device(call, config, typo):
    text = config.read_text()
    log = f"{config.parent}/backyfs.log"
    config.write_text(text.replace(log, str(typo)))
    status, _, err = call("ls")
    assert (status, "there is no such device" in err) == (1, True)
    assert not typo.exists()
    config.write_text(text.replace(log, "/dev/null"))
    assert call("ls")[0] == 0


@pytest.fixture(autouse=True)
def _tools():
    assert os.geteuid() == 0, "only root can mount and use loop devices"
    assert shutil.which("qemu-io") is not None, "contrib/setup.sh installs qemu-utils"
