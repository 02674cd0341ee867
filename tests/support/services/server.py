"""A private server: children of this process, in a separate directory, on free loopback ports.

Nothing outlives the tests: the kernel ends the server when this process dies for any reason, and the next run removes
the directory that a killed run left. Everybody on this machine can connect to the server.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

# Unlike a directory of pytest, the account of a server can enter these.
_DISK, _MEMORY = "/tmp", "/dev/shm"
_ENOUGH_MEMORY_BYTES = 4 << 30  # free, for the servers of four processes
_PREFIX = "backyfs-tests-"
_START_S = 60
_STOP_S = 20
_PORTS = 16_384  # below the range that the kernel assigns


class ServerMissingError(Exception):
    """A program of the server is not installed."""


class Server(ABC):
    """A server of one or more processes that runs until `stop`, or until the end of its `with` block.

    It also ends with the thread that started it, so start it in one that lasts.
    """

    name: ClassVar[str]
    end: ClassVar[signal.Signals] = signal.SIGKILL    # ends it immediately, and leaves nothing outside the directory
    account: ClassVar[tuple[str, str] | None] = None  # where root runs the tests, the user and group of the server
    in_memory: ClassVar[bool] = False                 # its directory is small, and kept in memory where there is enough

    def __init__(self) -> None:
        """Start a server and wait until it answers.

        Raises:
            ServerMissingError: it is not installed.
        """
        self._processes: list[subprocess.Popen[bytes]] = []
        _remove_leftovers()
        self.directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{self.name}-{os.getpid()}-", dir=self._place())
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _place(self) -> str:
        if not self.in_memory or not os.path.isdir(_MEMORY):
            return _DISK
        return _MEMORY if shutil.disk_usage(_MEMORY).free >= _ENOUGH_MEMORY_BYTES else _DISK

    @abstractmethod
    def start(self) -> None:
        """Start all processes and return when the server answers."""

    def stop(self) -> None:
        """End the server and remove its directory. May be called twice."""
        while self._processes:
            process = self._processes.pop()
            process.send_signal(self.end)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def serve(self, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
        """Start a process of the server, which must not fork or change its user."""
        process = self._run(command, environment)
        self._processes.append(process)
        return process

    def run(self, command: list[str], **environment: str) -> None:
        """Run a program that the server needs, and wait for its end."""
        process = self._run(command, environment)
        try:
            status = process.wait(_START_S)
        finally:
            process.kill()
        if status != 0:
            raise RuntimeError(f"{command[0]} failed for {self.name}:\n{self.log()}")

    def wait_until(self, answers: Callable[[], bool]) -> None:
        """Wait until the server answers; fail if one of its processes ends, or if it takes too long."""
        deadline = time.monotonic() + _START_S
        while not answers():
            if any(process.poll() is not None for process in self._processes) or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not answer:\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        """Return the output of its programs."""
        with open(os.path.join(self.directory, "log"), encoding="utf-8", errors="replace") as log:
            return log.read()

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        # A process that changes its user no longer gets a signal at the death of its parent. So setpriv does both,
        # in this order, and then becomes the server, so its pid is known.
        account: list[str] = []
        if self.account is not None and os.geteuid() == 0:
            account = [f"--reuid={self.account[0]}", f"--regid={self.account[1]}", "--clear-groups"]
        usual = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": self.directory, "TMPDIR": self.directory}
        with open(os.path.join(self.directory, "log"), "ab") as log:
            return subprocess.Popen(
                ["setpriv", *account, f"--pdeathsig={self.end.name}", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**usual, **environment},
            )


def find_program(name: str, *directories: str) -> str:
    """Return the path of a program in one of these directories or in PATH.

    Raises:
        ServerMissingError: it is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([*directories, os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise ServerMissingError(f"{name} is not installed; `contrib/setup.sh tests` installs it")
    return found


def free_ports(count: int) -> list[int]:
    """Return loopback ports on which nothing listens.

    The kernel assigns other ports, so none is taken by chance before the server listens on it.
    """
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(max(1024, first_given - _PORTS), max(first_given, _PORTS)))
    found: list[int] = []
    with ExitStack() as probes:
        while len(found) < count:
            port = candidates.pop(random.randrange(len(candidates)))
            with suppress(OSError):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found


def _remove_leftovers() -> None:
    """Remove the directories of killed processes, whose pid in the name no longer exists."""
    for directory in (*glob(f"{_DISK}/{_PREFIX}*"), *glob(f"{_MEMORY}/{_PREFIX}*")):
        pid = directory.rpartition("-")[0].rpartition("-")[2]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(directory, ignore_errors=True)
