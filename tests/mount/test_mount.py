"""Mounts from beginning to end, by the installed program: readiness, refusals, the process, unmounting."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from backyfs.errors import MountError
from backyfs.host.mountpoints import check_mountpoint
from backyfs.host.mounttable import list_mounts, mount_at
from backyfs.metadata.db.tables import jobs
from tests.support.images import random_image
from tests.support.program import (
    BACKYFS,
    PATIENCE_S,
    backyfs,
    clear,
    ends,
    kill_mount,
    mount,
    process_ending,
    process_of,
)
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Mounted = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("fuse")

SIZE = 3 * BLOCK + 5
LATEST = "by_name/disk/latest/data"
MOUNT_ERROR = 10


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Return the configuration of a repository with one version, a backup of `image`."""
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        back_up(repository, random_image(tmp_path / "image", SIZE))
    return config_file


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Make an empty directory to mount on."""
    target = tmp_path / "target"
    target.mkdir()
    return target


def commands_of_jobs(config_file: Path) -> list[str]:
    with opened(config_file) as repository, repository.database.read() as connection:
        return list(connection.execute(select(jobs.c.command)).scalars())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def command_name() -> str:
    """Return the name of this process."""
    return Path("/proc/self/comm").read_text().rstrip("\n")


def is_mounted(path: Path) -> bool:
    return mount_at(str(path)) is not None


@contextmanager
def foreground(config_file: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `backyfs mount -f`, and wait until it says that it is ready."""
    arguments = [BACKYFS, "-c", str(config_file), "mount", "-f", str(target)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert said.startswith(f"backyfs: {target} is mounted; ")
            assert said.endswith("; Ctrl-C unmounts it\n")
            yield process
        finally:
            process.kill()
            process.wait()
            clear(target)


# Start.


def test_a_mount_can_be_read_as_soon_as_the_command_returns(
    mounted: Mounted, config_file: Path, tmp_path: Path
) -> None:
    at = mounted(config_file)
    assert (at / LATEST).read_bytes() == (tmp_path / "image").read_bytes()


def test_a_mount_sets_the_read_ahead_of_the_kernel(config_file: Path, target: Path) -> None:
    try:
        done = mount(config_file, target)
        expected = "; the kernel reads 2048 KiB ahead" if os.geteuid() == 0 else ""
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"backyfs: {target} is mounted{expected}\n"
        if expected:
            device = os.stat(target).st_dev
            setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
            assert setting.read_text() == "2048\n"
        done = backyfs("umount", target)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    finally:
        clear(target)


def test_a_mount_is_read_only_and_of_our_type(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    found = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE,SOURCE,VFS-OPTIONS", str(at)], capture_output=True, text=True, check=True
    )
    file_system_type, source, options = found.stdout.split()
    assert (file_system_type, source) == ("fuse.backyfs", "backyfs")
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))


def test_a_mount_is_a_job_until_it_ends(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    assert commands_of_jobs(config_file) == [f"mount {at}"]
    assert backyfs("umount", at).returncode == 0
    assert commands_of_jobs(config_file) == []


@pytest.mark.parametrize("name", ["with space", "zwölf ✓", "tab\tand\nnewline", "back\\slash", "-o"])
def test_a_mountpoint_may_have_any_name(mounted: Mounted, config_file: Path, tmp_path: Path, name: str) -> None:
    at = mounted(config_file, "--", mountpoint=tmp_path / name)
    assert (at / LATEST).stat().st_size == SIZE
    assert backyfs("umount", "--", at).returncode == 0
    assert not is_mounted(at)


def test_paths_may_be_relative(config_file: Path, target: Path) -> None:
    try:
        arguments = [BACKYFS, "-c", f"repository/{config_file.name}", "mount", target.name]
        assert subprocess.run(arguments, cwd=target.parent, check=False).returncode == 0
        assert (target / LATEST).stat().st_size == SIZE
        assert subprocess.run([BACKYFS, "umount", target.name], cwd=target.parent, check=False).returncode == 0
        assert not is_mounted(target)
    finally:
        clear(target)


def test_a_mountpoint_may_be_reached_through_a_link(mounted: Mounted, config_file: Path, tmp_path: Path) -> None:
    at = mounted(config_file)
    (tmp_path / "link").symlink_to(at)
    assert mount(config_file, tmp_path / "link").returncode == MOUNT_ERROR
    assert backyfs("umount", tmp_path / "link").returncode == 0
    assert not is_mounted(at)


def test_a_directory_can_be_mounted_on_again(mounted: Mounted, config_file: Path, target: Path) -> None:
    for _ in range(3):
        mounted(config_file, mountpoint=target)
        assert backyfs("umount", target).returncode == 0


def test_a_repository_can_be_mounted_twice(mounted: Mounted, config_file: Path, tmp_path: Path) -> None:
    first, second = mounted(config_file), mounted(config_file)
    image = (tmp_path / "image").read_bytes()
    with (first / LATEST).open("rb", buffering=0) as file:
        assert file.read(100) == image[:100]
        assert (second / LATEST).read_bytes() == image
        assert backyfs("umount", second).returncode == 0
        file.seek(2 * BLOCK)
        assert file.read() == image[2 * BLOCK :]


@pytest.mark.parametrize("options", ["allow_other", "noatime,nodev,noexec", "ro,default_permissions", "allow_root,"])
def test_options_are_accepted(mounted: Mounted, config_file: Path, options: str) -> None:
    if os.geteuid() != 0 and "allow" in options:
        pytest.skip("users need a line in fuse.conf for it")
    assert (mounted(config_file, "-o", options) / LATEST).stat().st_size == SIZE


def test_the_helper_of_auto_unmount_does_not_stop_the_command_from_returning(
    mounted: Mounted, config_file: Path
) -> None:
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    at = mounted(config_file, "-o", "auto_unmount")  # fusermount3 decides whether it unmounts after a kill
    assert (at / LATEST).stat().st_size == SIZE
    assert backyfs("umount", at).returncode == 0
    assert not is_mounted(at)


# Refusals.


def refusal(config_file: Path, target: Path, *options: str) -> tuple[int, str]:
    """Try to mount, check that nothing is left behind, and return status and message."""
    before = is_mounted(target)
    try:
        done = mount(config_file, target, *options)
        assert is_mounted(target) == before
    finally:
        if not before:
            clear(target)
    (line,) = done.stderr.splitlines()
    assert done.stdout == ""
    return done.returncode, line


def test_a_missing_directory_is_refused(config_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "nothing"
    assert refusal(config_file, path) == (
        MOUNT_ERROR,
        f"backyfs: error: {path} is not a directory; make it first (mkdir {path}) or name another one",
    )
    assert commands_of_jobs(config_file) == []


def test_a_file_is_refused(config_file: Path, tmp_path: Path) -> None:
    status, line = refusal(config_file, tmp_path / "image")
    assert status == MOUNT_ERROR
    assert line.startswith(f"backyfs: error: {tmp_path / 'image'} is not a directory;")


def test_a_place_without_a_repository_is_refused(config_file: Path, target: Path) -> None:
    database = config_file.with_name("backyfs.sqlite")
    database.unlink()
    status, line = refusal(config_file, target)
    assert status == 1
    assert line.startswith(f"backyfs: error: {database} holds no repository, but the storage holds a copy")
    assert not database.exists()


def test_a_missing_configuration_is_refused(target: Path, tmp_path: Path) -> None:
    status, line = refusal(tmp_path / "nothing.cfg", target)
    assert status == 1
    assert line.startswith(f"backyfs: error: {tmp_path / 'nothing.cfg'}: ")


def test_a_missing_storage_is_refused(config_file: Path, target: Path) -> None:
    storage = config_file.with_name("data")
    storage.rename(storage.with_name("away"))
    assert refusal(config_file, target) == (
        6,
        f"backyfs: error: storage directory {storage} does not exist; is its file system mounted?",
    )


def test_a_wrong_key_is_refused(config_file: Path, target: Path) -> None:
    config_file.with_name("backyfs.key").write_text("ab" * 32 + "\n")
    status, line = refusal(config_file, target)
    assert status == 3
    assert line.startswith("backyfs: error: ")
    assert "key" in line
    assert "abab" not in line


def test_a_second_mount_on_the_same_directory_is_refused(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    assert refusal(config_file, at) == (
        MOUNT_ERROR,
        f"backyfs: error: {at} is already mounted; run `backyfs umount {at}` first",
    )
    assert (at / LATEST).stat().st_size == SIZE


@pytest.mark.parametrize("place", ["repository", "repository/data", "repository/data/sub", "."])
def test_a_mountpoint_that_overlaps_the_repository_is_refused(config_file: Path, tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.mkdir(exist_ok=True)
    status, line = refusal(config_file, path)
    assert status == MOUNT_ERROR
    assert line.startswith(f"backyfs: error: {path} overlaps the repository ({tmp_path / 'repository'}/")
    assert line.endswith("); mount it somewhere else")


def test_a_mountpoint_that_overlaps_the_repository_through_a_link_is_refused(config_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "repository" / "data")
    status, line = refusal(config_file, tmp_path / "link")
    assert status == MOUNT_ERROR
    assert "overlaps the repository" in line


@pytest.mark.parametrize(
    ("path", "own"), [("/", "/srv/backup"), ("/srv", "/srv/backup"), ("/srv", "/srv"), ("/srv", "/")]
)
def test_overlapping_paths_are_refused(path: str, own: str) -> None:
    with pytest.raises(MountError, match="overlaps the repository"):
        check_mountpoint(path, (own,))


def test_paths_with_only_a_common_beginning_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    check_mountpoint(str(tmp_path / "data"), (str(tmp_path / "data2"), str(tmp_path / "dat")))


@pytest.mark.parametrize("option", ["rw", "max_read=1", "nonsense", "allow_other,suid", "fsname=x"])
def test_an_unknown_option_is_refused(config_file: Path, target: Path, option: str) -> None:
    status, line = refusal(config_file, target, "-o", option)
    assert status == MOUNT_ERROR
    assert line == (
        f"backyfs: error: mount option {option.rpartition(',')[2]!r} is not known; allowed: allow_other, allow_root, "
        "auto_unmount, default_permissions, noatime, nodev, noexec, nosuid, ro"
    )


# The process.


def stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat after the name, from field 3 on; see proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_a_mount_outlives_its_terminal(config_file: Path, target: Path) -> None:
    command = f"{BACKYFS} -c '{config_file}' mount '{target}'"
    try:
        subprocess.run(
            ["script", "-qec", command, "/dev/null"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=PATIENCE_S,
        )
        with process_ending(process_of(target)):
            assert (target / LATEST).stat().st_size == SIZE
            assert backyfs("umount", target).returncode == 0
    finally:
        clear(target)


def test_a_mount_leaves_terminal_session_and_directory(mounted: Mounted, config_file: Path) -> None:
    pid = process_of(mounted(config_file))
    _state, parent, group, session, terminal, *_ = stat_fields(pid)
    assert int(parent) != os.getpid()
    assert (int(group), int(session)) == (pid, pid)
    assert terminal == "0"
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3


def test_a_mount_runs_nothing_from_the_current_directory(config_file: Path, target: Path) -> None:
    strange = target.parent / "strange"
    strange.mkdir()
    for module in ("backyfs", "click", "trio", "logging"):
        (strange / f"{module}.py").write_text(f"open({str(strange / 'was_run')!r}, 'w')\n")
    try:
        done = subprocess.run(
            [BACKYFS, "-c", str(config_file), "mount", str(target)], cwd=strange, check=False, timeout=PATIENCE_S
        )
        assert done.returncode == 0
        assert not (strange / "was_run").exists()
    finally:
        backyfs("umount", target)
        clear(target)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_mount_in_the_foreground(config_file: Path, target: Path, number: signal.Signals) -> None:
    with foreground(config_file, target) as process:
        assert (target / LATEST).stat().st_size == SIZE
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert not is_mounted(target)
        assert list(target.iterdir()) == []
    assert commands_of_jobs(config_file) == []


def test_a_signal_ends_a_mount_in_the_background(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    with process_ending(process_of(at)):
        os.kill(process_of(at), signal.SIGTERM)
        wait_until(lambda: not is_mounted(at))
    wait_until(lambda: commands_of_jobs(config_file) == [])


def test_unmounting_ends_a_mount_in_the_foreground(config_file: Path, target: Path) -> None:
    with foreground(config_file, target) as process:
        assert backyfs("umount", target).returncode == 0
        assert process.wait(0) == 0
    assert commands_of_jobs(config_file) == []


def test_an_immediate_signal_unmounts(config_file: Path, target: Path) -> None:
    program = f"""
import os, signal
from backyfs.config import load_config
from backyfs.mount.session import MountRequest, serve
from backyfs.repository import open_repository

with open_repository(load_config({str(config_file)!r}, {{}})[0]) as repository:
    serve(
        repository, MountRequest(mountpoint={str(target)!r}), ready=lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
"""
    try:
        done = subprocess.run([sys.executable, "-c", program], check=False, timeout=PATIENCE_S)
        assert done.returncode == 0
        assert not is_mounted(target)
    finally:
        clear(target)
    assert commands_of_jobs(config_file) == []


def test_a_signal_ends_a_mount_in_use(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    file = os.open(at / LATEST, os.O_RDONLY)
    try:
        with process_ending(process_of(at)):
            os.kill(process_of(at), signal.SIGTERM)
            wait_until(lambda: not is_mounted(at))
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is checked
            os.pread(file, 1, 2 * BLOCK)
        assert caught.value.errno in {errno.ENOTCONN, errno.ECONNABORTED}
    finally:
        with suppress(OSError):  # ENOTCONN, but closed nevertheless
            os.close(file)
    assert commands_of_jobs(config_file) == []


# Unmounting.


def test_umount_waits_until_the_process_has_ended(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    process = os.pidfd_open(process_of(at))
    try:
        assert backyfs("umount", at).returncode == 0
        assert ends(process, timeout_s=0)
    finally:
        os.close(process)
    assert not is_mounted(at)


@pytest.mark.parametrize("what", ["directory", "nothing", "other file system"])
def test_foreign_mounts_are_not_unmounted(target: Path, what: str) -> None:
    path = {"directory": target, "nothing": target / "nothing", "other file system": Path("/proc")}[what]
    done = backyfs("umount", path)
    assert done.returncode == MOUNT_ERROR
    assert done.stderr == (
        f"backyfs: error: nothing of backyfs is mounted on {path}; `findmnt -t fuse.backyfs` lists its mounts\n"
    )
    assert is_mounted(Path("/proc"))


def test_a_mount_in_use_is_not_unmounted(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    with (at / LATEST).open("rb") as file:
        done = backyfs("umount", at)
        assert done.returncode == MOUNT_ERROR
        (line,) = done.stderr.splitlines()
        assert line == (
            f"backyfs: error: {at} is still mounted: it is busy, used by {command_name()} (pid {os.getpid()}, open "
            "file); end that, then run this again"
        )
        assert is_mounted(at)
        assert len(file.read()) == SIZE
    assert backyfs("umount", at).returncode == 0


def test_a_mount_whose_process_was_killed_is_cleared(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    kill_mount(at)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is checked
        os.listdir(at)
    assert caught.value.errno == errno.ENOTCONN
    assert backyfs("umount", at).returncode == 0
    assert not is_mounted(at)


def test_the_next_mount_clears_a_mount_whose_process_was_killed(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    kill_mount(at)
    assert mounted(config_file, mountpoint=at) == at
    assert (at / LATEST).stat().st_size == SIZE
    assert [mount.mountpoint for mount in list_mounts()].count(str(at)) == 1


def test_the_next_command_removes_the_job_of_a_killed_mount(mounted: Mounted, config_file: Path) -> None:
    at = mounted(config_file)
    pid = process_of(at)
    with process_ending(pid):
        os.kill(pid, signal.SIGKILL)
    assert commands_of_jobs(config_file) == [f"mount {at}"]
    backyfs("umount", at)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"))  # until init has collected its status, it still exists
    second = mounted(config_file)
    assert commands_of_jobs(config_file) == [f"mount {second}"]
