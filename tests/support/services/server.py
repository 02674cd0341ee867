"""A private database server: a child of this process, in a directory of its own, on a free port of loopback.

Nothing of it outlives the tests: the kernel ends the server when this process dies, however it does, and the
next run removes the directory of one that was killed. Everybody on this machine can connect to it.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from glob import glob
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from typing import Self

    from sqlalchemy import Connection

_PLACE = "/tmp"  # unlike a directory of pytest, it can be entered by the account
_PREFIX = "backyfs-tests-"
ACCOUNT = ("nobody", "nogroup")  # of the servers where root runs the tests: PostgreSQL refuses root
_START_S = 60
_STOP_S = 20


class ServerMissingError(Exception):
    """A program of the server is not installed."""


class Server(ABC):
    """A server that runs until `stop`, or as long as the `with` it is used in."""

    name: ClassVar[str]
    superuser: ClassVar[str]       # has no password
    first_database: ClassVar[str]  # one that is always there
    scheme: ClassVar[str]          # of URLs, as users write them
    driver: ClassVar[str]          # the same with the driver, as SQLAlchemy has it
    end: ClassVar[signal.Signals]  # ends it at once, and leaves nothing outside of the directory

    def __init__(self) -> None:
        """Start a server and wait until it answers.

        Raises:
            ServerMissingError: it is not installed.
        """
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        _remove_leftovers()
        self.directory = tempfile.mkdtemp(prefix=f"{_PREFIX}{self.name}-{os.getpid()}-", dir=_PLACE)
        try:
            self.port = _free_port()
            self._start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def url(self, database: str) -> str:
        """Return the URL of a database, as a configuration names it."""
        return f"{self.scheme}://{self.superuser}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{next(self._numbers)}"
        self.execute(self.create_statement(name))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database."""
        name = make_url(url).database
        assert name is not None
        self.execute(self.drop_statement(name))

    def disconnect(self, connection: Connection) -> None:
        """End a connection from the side of the server, and wait until it has ended."""
        self.execute(self.disconnect_statement(connection.connection.dbapi_connection))

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser, outside of any transaction."""
        url = make_url(self.url(self.first_database)).set(drivername=self.driver)
        engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))

    def stop(self) -> None:
        """End the server and remove its directory. To stop it twice is fine."""
        if self._process is not None:
            self._process.send_signal(self.end)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.directory, ignore_errors=True)

    @abstractmethod
    def initialize_command(self, data: str) -> list[str]:
        """Return the command that makes the directory of the data."""

    def configure(self, data: str) -> None:  # noqa: B027
        """Change the directory of the data before the server starts. Most servers need nothing."""

    @abstractmethod
    def serve_command(self, data: str) -> list[str]:
        """Return the command of the server itself, which neither forks nor changes its user."""

    @abstractmethod
    def create_statement(self, database: str) -> str:
        """Return what makes an empty database."""

    @abstractmethod
    def disconnect_statement(self, raw: Any) -> str:
        """Return what ends a connection of the driver."""

    @abstractmethod
    def drop_statement(self, database: str) -> str:
        """Return what drops a database."""

    def _start(self) -> None:
        os.chmod(self.directory, 0o711)
        if os.geteuid() == 0:
            shutil.chown(self.directory, *ACCOUNT)
        data = os.path.join(self.directory, "data")
        made = self._run(self.initialize_command(data))
        if made.wait(_START_S) != 0:
            raise RuntimeError(f"the data of {self.name} cannot be made:\n{self._log()}")
        self.configure(data)
        self._process = self._run(self.serve_command(data))
        self._wait_for_answer(self._process)

    def _wait_for_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.execute("SELECT 1")
            except OperationalError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} does not answer:\n{self._log()}") from error
                time.sleep(0.02)
            else:
                return

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        # A process that changes its user forgets the signal it is to get at the death of its parent. So
        # setpriv does both, in this order, and becomes the server, whose pid is thus ours to end.
        account = [f"--reuid={ACCOUNT[0]}", f"--regid={ACCOUNT[1]}", "--clear-groups"] if os.geteuid() == 0 else []
        with open(os.path.join(self.directory, "log"), "ab") as log:
            return subprocess.Popen(
                ["setpriv", *account, f"--pdeathsig={self.end.name}", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": self.directory, "TMPDIR": self.directory},
            )

    def _log(self) -> str:
        with open(os.path.join(self.directory, "log"), encoding="utf-8", errors="replace") as log:
            return log.read()


def find_program(name: str, *directories: str) -> str:
    """Return the path of a program that lies in one of these directories or in PATH.

    Raises:
        ServerMissingError: it is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([*directories, os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise ServerMissingError(f"{name} is not installed; `contrib/setup.sh tests` installs it")
    return found


def _remove_leftovers() -> None:
    """Remove the directories of processes that were killed: the pid in the name is nobody's."""
    for directory in glob(f"{_PLACE}/{_PREFIX}*"):
        pid = directory.rpartition("-")[0].rpartition("-")[2]
        if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            shutil.rmtree(directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
