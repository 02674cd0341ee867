"""Signals to a mount: INT and TERM unmount it, HUP and QUIT only if it has a terminal, and others do nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from backyfs.cli import background
from backyfs.host.mounttable import mount_at
from backyfs.metadata.db.tables import jobs
from tests.support.images import sparse_image
from tests.support.program import BACKYFS, PATIENCE_S, backyfs, clear, ends, mount, process_ending, process_of
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("fuse")

INTERRUPTED = 130
LATEST = "by_name/disk/latest/data"
SIZE = 8 * BLOCK
READ_PARENT = "read _ _ _ parent _ </proc/$BACKYFS_PID/stat"
HELPER = str(Path(BACKYFS).with_name("mount.backyfs"))
# By default, each ends a process, according to signal(7), but none means that the process is broken.
SURVIVED = [
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO, signal.SIGPWR,
    signal.SIGSTKFLT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGXCPU, signal.SIGRTMIN, signal.SIGRTMAX,
]  # fmt: skip
OF_A_TERMINAL = [signal.SIGHUP, signal.SIGQUIT]
ENDING = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    config_file = make_repository(tmp_path / "repository")
    with opened(config_file) as repository:
        back_up(repository, sparse_image(tmp_path / "image", SIZE, {BLOCK: b"x" * BLOCK}))
    return config_file


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "target"
    target.mkdir()
    try:
        yield target
    finally:
        clear(target)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_mounted(target: Path) -> bool:
    return mount_at(str(target)) is not None


def answers(target: Path) -> bool:
    """Return whether the mount can read an image, for which it needs its threads."""
    with (target / LATEST).open("rb", buffering=0) as file:
        return os.pread(file.fileno(), 4, BLOCK) == b"xxxx"


def is_caught(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal or ignores it; see proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigIgn:", "SigCgt:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


@contextmanager
def in_background(config_file: Path, target: Path, *, by: str = BACKYFS) -> Iterator[int]:
    """Mount in the background; yield the process, and end it afterwards."""
    words = ["-c", str(config_file), "mount", str(target)] if by == BACKYFS else [str(config_file), str(target)]
    done = subprocess.run([by, *words], check=False, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    pid = process_of(target)
    with process_ending(pid):
        try:
            yield pid
        finally:
            if is_mounted(target):
                os.kill(pid, signal.SIGTERM)
                clear(target)


@contextmanager
def in_foreground(
    config_file: Path, target: Path, *options: str, ignored: tuple[signal.Signals, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Mount in the foreground, started with some signals ignored, and wait until it says that it is ready."""
    # A test run in the background of a shell inherits some signals as ignored.
    signals = ["--default-signal", *(f"--ignore-signal={number.name.removeprefix('SIG')}" for number in ignored)]
    arguments = [BACKYFS, "-c", str(config_file), "mount", "-f", *options, str(target)]
    with subprocess.Popen(["env", *signals, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert " is mounted; " in process.stderr.readline()
            yield process
        finally:
            process.kill()
            process.wait()


def no_job_is_left(config_file: Path) -> bool:
    with opened(config_file) as repository, repository.database.read() as connection:
        return connection.execute(select(jobs.c.id)).first() is None


# In the background.


@pytest.mark.parametrize("number", [*OF_A_TERMINAL, *SURVIVED], ids=lambda number: signal.Signals(number).name)
def test_a_mount_in_the_background_survives(config_file: Path, target: Path, number: int) -> None:
    with in_background(config_file, target) as pid:
        assert is_caught(pid, number)
        os.kill(pid, number)
        assert answers(target)
        assert backyfs("umount", target).returncode == 0


@pytest.mark.parametrize("number", ENDING)
def test_a_mount_in_the_background_is_unmounted_by(config_file: Path, target: Path, number: signal.Signals) -> None:
    with in_background(config_file, target) as pid:
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, number)
        assert ends(process, PATIENCE_S)
        os.close(process)
        assert not is_mounted(target)
    assert no_job_is_left(config_file)


@pytest.mark.parametrize("number", [*OF_A_TERMINAL, signal.SIGUSR1])
def test_a_mount_by_mount_8_survives(config_file: Path, target: Path, number: int) -> None:
    with in_background(config_file, target, by=HELPER) as pid:
        os.kill(pid, number)
        assert answers(target)
        assert backyfs("umount", target).returncode == 0


@pytest.mark.parametrize("number", ENDING)
def test_a_mount_by_mount_8_is_unmounted_by(config_file: Path, target: Path, number: signal.Signals) -> None:
    with in_background(config_file, target, by=HELPER) as pid:
        process = os.pidfd_open(pid)
        os.kill(pid, number)
        assert ends(process, PATIENCE_S)
        os.close(process)
        assert not is_mounted(target)


def test_a_mount_with_hooks_survives_the_end_of_its_terminal(config_file: Path, target: Path, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    with config_file.open("a") as config:
        config.write(f"\n[hooks]\nafter_mount: touch {ended}\n")
    with in_background(config_file, target) as pid:
        os.kill(pid, signal.SIGHUP)
        assert answers(target)
        assert backyfs("umount", target).returncode == 0
    wait_until(ended.exists)


# In the foreground.


@pytest.mark.parametrize("number", [*ENDING, *OF_A_TERMINAL])
def test_a_mount_in_the_foreground_is_unmounted_by(config_file: Path, target: Path, number: signal.Signals) -> None:
    with in_foreground(config_file, target) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert not is_mounted(target)
    assert no_job_is_left(config_file)


@pytest.mark.parametrize("number", SURVIVED, ids=lambda number: signal.Signals(number).name)
def test_a_mount_in_the_foreground_survives(config_file: Path, target: Path, number: int) -> None:
    with in_foreground(config_file, target) as process:
        assert is_caught(process.pid, number)
        process.send_signal(number)
        assert answers(target)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("number", OF_A_TERMINAL)
def test_a_signal_ignored_by_nohup_remains_ignored(
    config_file: Path, target: Path, number: signal.Signals
) -> None:
    with in_foreground(config_file, target, ignored=(number,)) as process:
        process.send_signal(number)
        assert answers(target)


@pytest.mark.parametrize("number", ENDING)
def test_int_and_term_unmount_even_if_they_were_ignored(
    config_file: Path, target: Path, number: signal.Signals
) -> None:
    with in_foreground(config_file, target, ignored=(number,)) as process:
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0
        assert not is_mounted(target)


@pytest.mark.parametrize("number", ENDING)
def test_int_and_term_unmount_even_if_the_parent_had_blocked_them(
    config_file: Path, target: Path, number: signal.Signals
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        with in_foreground(config_file, target) as process:
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 0
            assert not is_mounted(target)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_mount_outlives_the_reader_of_its_messages(config_file: Path, target: Path) -> None:
    with in_foreground(config_file, target, "--timeout", "60") as process:
        assert process.stderr is not None
        process.stderr.close()
        process.send_signal(signal.SIGUSR1)
        assert answers(target)
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
        assert not is_mounted(target)


# During the start.


def test_an_interrupted_command_leaves_no_mount(config_file: Path, target: Path) -> None:
    with config_file.open("a") as config:
        config.write(f"\n[hooks]\nbefore_mount: {READ_PARENT}; kill -INT $parent; sleep 60\n")
    done = mount(config_file, target)
    assert done.returncode == INTERRUPTED
    wait_until(lambda: not is_mounted(target))
    wait_until(lambda: no_job_is_left(config_file))


def test_a_killed_command_leaves_no_mount(config_file: Path, target: Path) -> None:
    with config_file.open("a") as config:
        config.write(f"\n[hooks]\nbefore_mount: {READ_PARENT}; kill -KILL $parent\n")
    assert mount(config_file, target).returncode == -signal.SIGKILL
    wait_until(lambda: no_job_is_left(config_file))
    assert not is_mounted(target)


def test_a_mount_killed_before_it_is_ready_is_an_error(config_file: Path, target: Path) -> None:
    with config_file.open("a") as config:
        config.write("\n[hooks]\nbefore_mount: kill -KILL $BACKYFS_PID\n")
    done = mount(config_file, target)
    assert done.returncode == 10
    assert done.stderr.endswith(
        "backyfs: error: the process of the mount was ended by signal 9 before it was ready; try again\n"
    )


def test_a_process_with_threads_is_not_forked() -> None:
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    other.start()
    try:
        with pytest.raises(AssertionError, match="a process with several threads cannot fork"):
            background.start()
    finally:
        end.set()
        other.join()
