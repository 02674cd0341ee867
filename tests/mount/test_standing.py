"""Devices and mounts stacked on a mount: `backyfs umount` removes them all, and leftovers of a kill are cleared."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.errors import MountError
from backyfs.host.answers import State, ask
from backyfs.host.loops import Loop, find_loop, is_backed_by_device, list_loops
from backyfs.host.mountpoints import check_mountpoint, clear_dangling, unmount
from backyfs.host.mounttable import Mount, mount_at
from backyfs.host.stack import stacked_on, tear_down
from backyfs.host.users import describe, users_in_other_namespaces, users_of
from tests.support.attaching import MIB, by_hand, cleared, config_of, disk_of, left_of, repository_of
from tests.support.images import ext4_image
from tests.support.program import backyfs, kill_mount, mount, process_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK = "by_name/disk/latest"


@pytest.fixture(scope="module")
def home(loop_devices: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a directory with a repository that has a disk with one partition, which contains another image."""
    home = tmp_path_factory.mktemp("standing")
    files = home / "files"
    files.mkdir()
    (files / "hello").write_text("good morning\n")
    with cleared(home):
        inner = ext4_image(home / "inner", files, 2 * MIB)
        inner.rename(files / "inner")
        repository_of(home, {"disk": disk_of(home / "disk", {ext4_image(home / "first", files, 8 * MIB): "linux"})})
        yield home


@pytest.fixture
def at(home: Path, tmp_path: Path) -> Iterator[Path]:
    """Mount the repository; leftovers are removed at the end."""
    at = tmp_path / "mount"
    at.mkdir()
    with cleared(tmp_path), cleared(home):
        done = mount(config_of(home), at)
        assert done.returncode == 0, done.stderr
        yield at


def set_up(file: Path) -> str:
    arguments = ["losetup", "--find", "--show", "--read-only", str(file)]
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def stopped(at: Path) -> Iterator[int]:
    """Stop the process of a mount, so it does not answer."""
    pid = process_of(at)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


# Unmounting everything on a mount.


def test_a_file_system_on_a_loop_device_is_unmounted_with_the_mount(home: Path, at: Path) -> None:
    files = at.with_name("files")
    with by_hand(at / DISK / "partitions" / "1", files, "-o", "loop,ro,noload"):
        done = backyfs("umount", at)
        assert done.returncode == 0
        assert f"backyfs: {files} is unmounted\n" in done.stderr
        assert not os.path.ismount(files)
    assert mount_at(str(at)) is None
    assert left_of(home) == []


def test_a_loop_device_without_a_mount_is_detached(home: Path, at: Path) -> None:
    device = set_up(at / DISK / "data")
    done = backyfs("umount", at)
    assert done.returncode == 0
    assert done.stderr == f"backyfs: {device} is detached\n"
    assert find_loop(device) is None


def test_partition_nodes_are_removed_with_their_device(home: Path, at: Path) -> None:
    device = set_up(at / DISK / "data")
    subprocess.run(["partx", "--add", device], check=True)
    loop = find_loop(device)
    assert loop is not None
    assert loop.nodes == {device, f"{device}p1"}
    files = at.with_name("files")
    with by_hand(f"{device}p1", files, "-o", "ro,noload"):
        assert backyfs("umount", at).returncode == 0
        assert not os.path.ismount(files)
    assert find_loop(device) is None
    assert not os.path.exists(f"{device}p1")


def test_images_in_images_are_unmounted_from_the_top_down(home: Path, at: Path) -> None:
    outer, inner = at.with_name("outer"), at.with_name("inner")
    with (
        by_hand(at / DISK / "partitions" / "1", outer, "-o", "loop,ro,noload"),
        by_hand(outer / "inner", inner, "-o", "loop,ro,noload"),
    ):
        assert (inner / "hello").read_text() == "good morning\n"
        done = backyfs("umount", at)
        assert done.returncode == 0
        assert done.stderr.index(str(inner)) < done.stderr.index(str(outer))
    assert left_of(home) == left_of(at.parent) == []


def test_devices_and_mounts_elsewhere_are_kept(home: Path, at: Path) -> None:
    files = at.with_name("files")
    with by_hand(home / "first", files, "-o", "loop,ro,noload"):
        assert backyfs("umount", at).returncode == 0
        assert os.path.ismount(files)


def test_processes_using_a_file_system_on_the_mount_are_named(home: Path, at: Path) -> None:
    files = at.with_name("files")
    with by_hand(at / DISK / "partitions" / "1", files, "-o", "loop,ro,noload"):
        with (files / "hello").open("rb") as file:
            done = backyfs("umount", at)
            assert done.returncode == 10
            assert f"{files} is still mounted: it is busy, used by " in done.stderr
            assert f"(pid {os.getpid()}, open file)" in done.stderr
            assert file.read() == b"good morning\n"
        assert backyfs("umount", at).returncode == 0


@contextmanager
def file_in_transit(path: Path) -> Iterator[socket.socket]:
    """Keep a file open without any process: it is in transit through a socket until the socket is closed."""
    sender, receiver = socket.socketpair()
    with sender, receiver, path.open("rb") as file:
        socket.send_fds(sender, [b"x"], [file.fileno()])
        file.close()
        yield receiver


def test_umount_waits_for_a_mount_that_is_busy_for_a_moment(at: Path) -> None:
    with file_in_transit(at / DISK / "data") as receiver:
        closes = threading.Timer(0.5, receiver.close)
        closes.start()
        unmount(str(at))
        closes.join()
    assert mount_at(str(at)) is None


def test_a_mount_that_remains_busy_is_reported_with_a_way_to_find_its_users(at: Path) -> None:
    with file_in_transit(at / DISK / "data"):
        with pytest.raises(MountError, match=f"{at} is still mounted: it is busy; `fuser -vm {at}` lists its users"):
            unmount(str(at))
        assert mount_at(str(at)) is not None


def test_the_error_for_a_user_says_what_root_must_do(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = set_up(at / DISK / "data")
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(MountError) as caught:
            unmount(str(at))
    assert str(caught.value) == (
        f"{device} is stacked on {at}, and only root can remove it; unmount {at} as root"
    )
    unmount(str(at))


def test_a_mount_copied_to_another_namespace_is_reported(home: Path, at: Path) -> None:
    device = set_up(at / DISK / "partitions" / "1")
    files = at.with_name("files")
    with by_hand(device, files, "-o", "ro,noload"):
        script = "echo ready; exec sleep 60"
        arguments = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
            try:
                assert other.stdout is not None
                assert other.stdout.readline() == "ready\n"
                done = backyfs("umount", at)
                assert done.returncode == 10
                assert f"{device} is in use by " in done.stderr
                assert f"(pid {other.pid}, has it mounted on {files} in another mount namespace)" in done.stderr
            finally:
                other.kill()
    assert backyfs("umount", at).returncode == 0
    assert left_of(home) == []


# Dead or silent mounts.


@pytest.mark.parametrize("how", ["umount", "mount"])
def test_a_dead_mount_is_cleared_with_everything_on_it(home: Path, at: Path, how: str) -> None:
    files = at.with_name("files")
    with by_hand(at / DISK / "partitions" / "1", files, "-o", "loop,ro,noload"):
        kill_mount(at)
        done = backyfs("umount", at) if how == "umount" else mount(config_of(home), at)
        assert done.returncode == 0, done.stderr
        assert not os.path.ismount(files)
    if how == "mount":
        assert (at / DISK / "data").stat().st_size > 0
        assert backyfs("umount", at).returncode == 0
    assert mount_at(str(at)) is None
    assert left_of(home) == []


def test_a_dead_mount_is_cleared_even_if_it_is_in_use(at: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=at / DISK) as user:
        try:
            kill_mount(at)
            assert clear_dangling(str(at))
            assert mount_at(str(at)) is None
        finally:
            user.kill()


def test_a_directory_without_a_dead_mount_is_left_alone(at: Path) -> None:
    kill_mount(at)
    assert clear_dangling(str(at))
    assert not clear_dangling(str(at))


def test_a_live_mount_is_not_cleared(at: Path) -> None:
    assert not clear_dangling(str(at))
    with pytest.raises(MountError, match="is already mounted"):
        check_mountpoint(str(at), ())
    assert ask(str(at)).pid == process_of(at)


def test_a_mount_identifies_itself(home: Path, at: Path) -> None:
    answer = ask(str(at), "by_name/disk/latest/partitions")
    assert answer.state is State.ANSWERS
    assert answer.has_directory
    assert answer.repository == os.getxattr(at, "user.backyfs.repository").decode()
    assert not ask(str(at), "by_name/nothing").has_directory


def test_a_mount_that_does_not_answer_can_be_unmounted(at: Path) -> None:
    with stopped(at):
        assert ask(str(at), patience_s=0.2).state is State.SILENT
        unmount(str(at), patience_s=0.2)
    assert mount_at(str(at)) is None


def test_a_silent_mount_in_use_is_reported_with_a_remedy(at: Path) -> None:
    # Not a file open in this process, because a fork would close it and wait for the mount.
    with subprocess.Popen(["sleep", "60"], cwd=at) as user:
        try:
            with stopped(at), pytest.raises(MountError) as caught:
                unmount(str(at), patience_s=0.2)
        finally:
            user.kill()
    present = mount_at(str(at))
    assert present is not None
    minor = present.device.partition(":")[2]
    assert str(caught.value).endswith(
        f"its process does not answer: as root, `echo 1 > /sys/fs/fuse/connections/{minor}/abort` frees processes that "
        "wait for it"
    )


def test_the_connection_of_a_silent_mount_exists_under_the_printed_number(at: Path) -> None:
    present = mount_at(str(at))
    assert present is not None
    # Not every host mounts it, so mount it in a separate mount namespace.
    script = 'cd /sys/fs/fuse/connections && mount -t fusectl none . 2>/dev/null; test -d "$PWD/$1"'
    subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", present.device.partition(":")[2]], check=True)


# Stacks, without a kernel.


def a_mount(number: int, parent: int, mountpoint: str, source: str = "none", device: str | None = None) -> Mount:
    return Mount(
        mount_id=number,
        parent_id=parent,
        mountpoint=mountpoint,
        file_system_type="fuse.backyfs" if source == "backyfs" else "ext4",
        device=device or f"0:{number}",
        source=source,
        read_only=True,
    )


def a_loop(number: int, backing_file: str) -> Loop:
    return Loop(
        device=f"/dev/loop{number}",
        backing_file=backing_file,
        numbers=frozenset({f"7:{number}"}),
        nodes=frozenset({f"/dev/loop{number}", f"/dev/loop{number}p1"}),
        holders=(),
        read_only=True,
    )


def test_the_stack_on_a_mount_is_listed_from_the_top_down() -> None:
    root = a_mount(1, 0, "/")
    below = a_mount(2, 1, "/b", "backyfs")
    files = a_mount(3, 1, "/files", "/dev/loop1", "7:1")
    inside = a_mount(4, 3, "/files/tmp")
    btrfs = a_mount(5, 1, "/btrfs", "/dev/loop2p1", "0:77")
    other = a_mount(6, 1, "/bb", "/dev/loop9", "7:9")
    loops = [a_loop(1, "/b/x"), a_loop(2, "/files/y"), a_loop(9, "/bb/z")]
    mounts = [root, below, files, inside, btrfs, other]
    assert stacked_on(below, mounts, loops) == [inside, btrfs, loops[1], files, loops[0]]
    assert stacked_on(loops[0], mounts, loops) == [inside, btrfs, loops[1], files]
    assert stacked_on(other, mounts, [loops[0], loops[1]]) == []


def test_two_mounts_of_a_device_are_both_found() -> None:
    below, first, second = a_mount(1, 0, "/b"), a_mount(2, 9, "/1", "/dev/loop1"), a_mount(3, 9, "/2", "/dev/loop1")
    loop = a_loop(1, "/b/x")
    assert stacked_on(below, [below, first, second], [loop]) == [second, first, loop]


def test_a_device_in_use_is_not_detached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from backyfs.host import holders, stack

    dm = tmp_path / "dm-0"
    (dm / "holders").mkdir(parents=True)
    (dm / "dm").mkdir()
    (dm / "dm" / "name").write_text("backyfs-loop1\n")
    (dm / "dm" / "uuid").write_text("CRYPT-LUKS2-0123-backyfs-loop1\n")
    (dm / "dev").write_text("253:0\n")
    monkeypatch.setattr(stack, "holders_of", lambda names: holders.holders_of(names, str(tmp_path)))
    monkeypatch.setattr(stack, "list_mounts", lambda: [a_mount(8, 1, "/secret", device="253:0")])
    with pytest.raises(MountError) as caught:
        tear_down(replace(a_loop(1, "/b/x"), holders=("dm-0",)))
    assert str(caught.value) == (
        "/dev/loop1 is in use by opened LUKS device backyfs-loop1; run `umount /secret`, "
        "`cryptsetup close backyfs-loop1`, then run this again"
    )


# Devices and processes.


def test_a_file_of_another_file_system_with_the_same_path_does_not_count(at: Path) -> None:
    device = set_up(at / DISK / "data")
    loop, present = find_loop(device), mount_at(str(at))
    assert loop is not None
    assert present is not None
    assert loop in list_loops()
    assert is_backed_by_device(loop, present.device)
    assert not is_backed_by_device(loop, "0:1")
    assert backyfs("umount", at).returncode == 0


def test_processes_are_described_by_their_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 4096)
    program = f"""
import mmap, os
with open({str(tmp_path / "file")!r}, "r+b") as file:
    kept = mmap.mmap(file.fileno(), 0)
print("ready", flush=True)
input()
"""
    arguments = [sys.executable, "-c", program]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (user,) = users_of([str(tmp_path)])
        assert (user.pid, user.how) == (process.pid, "mapped file") or user.how == "open file"
        assert describe([user] * 7).endswith(f"(pid {process.pid}, {user.how}), and 2 more")
        process.communicate("\n")
    assert users_of([str(tmp_path)]) == []


def test_an_unmounted_device_has_no_users_in_other_namespaces() -> None:
    assert users_in_other_namespaces({"7:9999"}) == []


@pytest.mark.parametrize(("user", "stands_on_it"), [(0, True), (12_345, False)])
def test_a_fuse_mount_of_a_device_is_trusted_only_from_root(user: int, stands_on_it: bool) -> None:
    below, files = a_mount(1, 0, "/b"), a_mount(2, 9, "/1", "/dev/loop1")
    files = replace(files, file_system_type="fuse.ext4", user_id=user)
    loop = a_loop(1, "/b/x")
    assert (files in stacked_on(below, [below, files], [loop])) is stands_on_it
