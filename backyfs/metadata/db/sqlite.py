"""Open the file of an SQLite database: normally, on a read-only file system, and on a full one.

In WAL mode even a reader needs the file `-shm` next to the database, through which processes coordinate. SQLite
allocates it when the first process opens the database. If there is no space for it, a reader opens it read-only and
keeps the index of the log in memory. SQLite notices when a writer appears, so readers always see a committed state.
Source: https://www.sqlite.org/wal.html#readonly, and `walBeginShmUnreliable` in wal.c.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError

from backyfs.errors import DatabaseError, DatabaseFullError
from backyfs.metadata.db.room import lacks_room
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK_PATIENCE_MS = 1000   # the schema check waits this long for a locked SQLite file
FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # SQLite itself reports that there is no space
_LOOK = "PRAGMA schema_version"  # reads the file, and the log if there is one
ROOM_BYTES = 64 << 10      # for `-shm` and the first pages of a log; with less, nothing can be written
_INDEX_BYTES = 32 << 10    # `-shm` has at least this size once it is in use
_NORMAL_EVERY = 25
_RETRIES = 100             # while another command opens or closes the database
_PAUSE_S = 0.02


class ReadingConnection(sqlite3.Connection):
    """A connection that can only read because the disk is full. It is used for one transaction."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_close: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close it, so that other connections can be opened normally again."""
        super().close()
        on_close, self.on_close = self.on_close, lambda: None
        on_close()


class FileOpener:
    """Opens connections to one file for one engine. May be called from any thread."""

    def __init__(self, path: str) -> None:
        """Prepare to open the file at `path`."""
        self._path = path
        self._lock = threading.Lock()
        self._reading = 0  # open ReadingConnections; a process opens `-shm` once, in the mode of its first connection

    def __call__(self) -> sqlite3.Connection:
        """Open the file for reading and writing, or only for reading if there is no space for the files next to it.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        with self._lock:
            for attempt in range(_RETRIES):
                # Failed attempts disturb readers in other processes, so only some attempts open the file normally.
                is_turn = attempt % _NORMAL_EVERY == 0 and not self._reading
                if is_turn and not self._is_surely_full() and (connection := self._open()) is not None:
                    return connection
                if (reading := self._open_reading()) is not None:
                    self._reading += 1
                    reading.on_close = self._count_closed
                    return reading
                time.sleep(_PAUSE_S)
        raise sqlite3.OperationalError(f"{self._path} cannot be read: its file system is full")

    def _count_closed(self) -> None:
        with self._lock:
            self._reading -= 1

    def _is_surely_full(self) -> bool:
        """Return whether a normal connection would certainly fail, without trying to open one."""
        try:
            # If another process has the database open, nothing needs to be allocated.
            is_open = os.path.getsize(f"{self._path}-shm") >= _INDEX_BYTES
        except OSError:
            is_open = False
        return not is_open and lacks_room(self._path, ROOM_BYTES)

    def _open(self) -> sqlite3.Connection | None:
        connection = _connect(self._path)
        try:
            connection.execute(_LOOK).close()
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorname in FULL or (not _is_busy(error) and lacks_room(self._path, ROOM_BYTES)):
                return None
            raise
        return connection

    def _open_reading(self) -> ReadingConnection | None:
        """Return a read-only connection; None if another command has just opened or closed the database."""
        path = os.path.abspath(self._path)
        if _has_index(path):
            place = f"file:{quote(path)}?readonly_shm=1"
        elif not _has_content(f"{path}-wal") and not _has_content(f"{path}-journal"):
            place = f"file:{quote(path)}?immutable=1"  # if not even an empty file can be created, nobody can write
        else:
            return None
        connection = _connect(place, uri=True, factory=ReadingConnection)
        assert isinstance(connection, ReadingConnection)
        try:
            connection.execute(_LOOK).close()
        except sqlite3.OperationalError as error:
            connection.close()
            if _is_transient(error):
                return None
            raise
        return connection


def begin_reading(raw: ReadingConnection, statement: str, execute: Callable[[str], object]) -> None:
    """Begin a transaction with `statement` on a connection that can only read.

    Raises:
        DatabaseFullError: the transaction wants to write.
        DBAPIError: the transaction cannot begin.
    """
    if statement != "BEGIN":
        path = raw.execute("PRAGMA database_list").fetchone()[2]
        raise full_error(path)
    for attempt in range(_RETRIES):
        execute(statement)
        try:
            execute("SELECT 1 FROM sqlite_master")  # the first read fixes the snapshot of the transaction
        except DBAPIError as error:
            if raw.in_transaction:
                execute("ROLLBACK")
            if attempt == _RETRIES - 1 or not (isinstance(error.orig, sqlite3.Error) and _is_transient(error.orig)):
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def full_error(place: str) -> DatabaseFullError:
    """Return the error for an SQLite database that cannot be written because there is no space."""
    return DatabaseFullError(
        "is full, or a quota or size limit is reached, so the database cannot be written",
        subject=f"the file system of {place}",
        remedy=Advice.FREE_DISK_SPACE(),
    )


def read_only_opener(path: str) -> Callable[[], sqlite3.Connection]:
    """Return a function that opens an SQLite file as immutable, so that SQLite creates no files next to it.

    Source: https://www.sqlite.org/uri.html, immutable.

    Raises:
        DatabaseError: its latest changes are in a file next to it.
    """
    path = os.path.abspath(path)
    for log in (f"{path}-wal", f"{path}-journal"):
        if _has_content(log):
            raise DatabaseError(
                f"is on a read-only file system, and its latest changes are still in {log}",
                subject=path,
                remedy="copy both files to a writable place, and set the copy as the engine of [MetaBackend]",
            )
    place = f"file:{quote(path)}?immutable=1"
    return lambda: _connect(place, uri=True)


def text_or_bytes(raw: bytes) -> str | bytes:
    """Return stored text; as bytes if it is not UTF-8, so that the rule of the column rejects it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _connect(place: str, **options: Any) -> sqlite3.Connection:
    timeout_s = CHECK_PATIENCE_MS / 1000
    connection: sqlite3.Connection = sqlite3.connect(place, timeout=timeout_s, check_same_thread=False, **options)
    return connection


def _has_index(path: str) -> bool:
    """Return whether the database file at `path` has a `-shm`. Create an empty one if possible, as SQLite would."""
    try:
        owner = os.stat(path)
        fd = os.open(f"{path}-shm", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, owner.st_mode & 0o777)
    except OSError:
        return False
    try:
        if os.geteuid() == 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)
    return True


def _has_content(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _is_transient(error: sqlite3.Error) -> bool:
    """Return whether a read failed because another command has just opened or closed the database."""
    return _is_busy(error) or error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
