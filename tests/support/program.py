"""The program: its commands and mounts, which are ended whatever happens.

`BACKYFS` is the program as installed. `backyfs` does the same in a tenth of the time, in a process forked from one that
has imported everything.
"""

from __future__ import annotations

import atexit
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backyfs.host.mounttable import mount_at
from tests.support.forkserver import ForkServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

BACKYFS = str(Path(sys.executable).with_name("backyfs"))
PATIENCE_S = 30.0


def why_not_mount() -> str | None:
    """Return the reason why nothing can be mounted here, or None."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return None


def why_not_loop() -> str | None:
    """Return the reason why images cannot be loop-mounted here, or None."""
    if os.geteuid() != 0:
        return "only root can set up loop devices"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return None if found.returncode == 0 else f"no loop device: {found.stderr.strip()}"


def backyfs(
    *arguments: object,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run a command, as `subprocess.run` runs the installed program with `capture_output` and `text`.

    Its standard input is empty.
    """
    words = list(map(str, arguments))
    with Collected() as out, Collected() as err:
        server = _server()
        server.start(
            words,
            {0: "/dev/null", 1: out.path, 2: err.path},
            environ=dict(os.environ if env is None else env),
            directory=str(cwd or os.getcwd()),
        )
        status = server.end(timeout)
        if status is None:
            _end_server()
            raise subprocess.TimeoutExpired([BACKYFS, *words], timeout)
        return subprocess.CompletedProcess([BACKYFS, *words], status, out.text(timeout), err.text(timeout))


class Collected:
    """A pipe, and a thread that reads it to the end."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self.path = f"/proc/{os.getpid()}/fd/{self._writer}"
        self._content = b""
        self._thread = threading.Thread(target=self._collect)
        self._thread.start()

    def _collect(self) -> None:
        with open(self._reader, "rb") as file:
            self._content = file.read()

    def text(self, timeout_s: float) -> str:
        """Wait until nobody has the pipe open any more; return everything written to it."""
        self._close()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise subprocess.TimeoutExpired([BACKYFS], timeout_s)
        return self._content.decode()

    def _close(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


@functools.cache
def _server() -> ForkServer:
    server = ForkServer()
    atexit.register(server.__exit__)
    return server


def _end_server() -> None:
    """End the server, and the command that it runs."""
    _server().__exit__()
    _server.cache_clear()


def mount(config_file: Path, mountpoint: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `backyfs mount`."""
    return backyfs("-c", config_file, "mount", *options, mountpoint)


def process_of(mountpoint: Path) -> int:
    """Return the id of the process that serves a mount."""
    return int(os.getxattr(mountpoint, "user.backyfs.pid"))


@contextmanager
def mounting(config_file: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Mount a repository. At the end, unmount it if it is still mounted, and wait for its process to end."""
    mountpoint.mkdir(exist_ok=True)
    mounted = mount(config_file, mountpoint, *options)
    unmounted = None
    try:
        assert mounted.returncode == 0, mounted.stderr
        with process_ending(process_of(mountpoint)):
            try:
                yield mountpoint
            finally:
                if mount_at(str(mountpoint)) is not None:
                    unmounted = backyfs("umount", mountpoint)
                    clear(mountpoint)
    finally:
        clear(mountpoint)
    assert unmounted is None or unmounted.returncode == 0, unmounted.stderr


@contextmanager
def process_ending(pid: int) -> Iterator[None]:
    """Wait for a process to end, and kill it if it does not."""
    process = os.pidfd_open(pid)
    try:
        yield
    finally:
        if not ends(process):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def ends(process: int, timeout_s: float = 5.0) -> bool:
    """Wait for the end of a process, given as a descriptor; return False if it does not end."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def clear(mountpoint: Path) -> None:
    """Unmount everything on a directory, in use or not."""
    while mount_at(str(mountpoint)) is not None:
        subprocess.run(["umount", "-l", "--", str(mountpoint)], check=True)


def kill_mount(at: Path) -> None:
    """Kill the process of a mount, and wait for its end."""
    with process_ending(process_of(at)):
        os.kill(process_of(at), signal.SIGKILL)
