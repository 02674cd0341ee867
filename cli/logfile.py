"""Write the log file. A renamed or removed file is replaced by a new one, and no problem with it ends a command.

Each line is a single write at the end of the file, so lines of several processes do not mix, and a signal handler may
log while a line is being written.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from backyfs.files import open_file

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_NONBLOCK

_log = logging.getLogger("backyfs.cli")


class LogFile(logging.Handler):
    """A log handler that appends records to a file, which it finds by its path.

    It can be a FIFO. Writing never waits for the reader of a FIFO: lines that do not fit are lost.
    """

    def __init__(self, path: str) -> None:
        """Open the file. Only the owner of its directory can read a new one.

        Raises:
            OSError: it cannot be opened.
        """
        super().__init__()
        self.path = os.path.abspath(path)  # a mount in the background changes its directory
        self._fd: int | None = None
        self._is_losing = False  # lines are being lost, and a warning was logged
        try:
            self._fd = open_file(self.path, _FLAGS)
        except OSError as error:
            if not self._waits_for_reader(error):
                raise

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record to the file that currently has the name."""
        line = f"{self.format(record)}\n".encode(errors="surrogateescape")
        try:
            self._follow_name()
            self._append(line)
        except OSError as error:
            if self._is_losing:
                return
            self._is_losing = True
            _log.warning("cannot write to the log file %s: %s", self.path, self._reason(error))
        else:
            self._is_losing = False

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        super().close()

    def _follow_name(self) -> None:
        """Reopen the file if it was renamed or removed, as by logrotate. If that fails, keep the old one."""
        if self._fd is not None and self._has_name(self._fd):
            return
        try:
            successor = open_file(self.path, _FLAGS)
        except OSError:
            if self._fd is None:
                raise
            return
        if self._fd is not None:
            os.close(self._fd)
        self._fd = successor

    def _has_name(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except OSError:
            return False

    def _append(self, line: bytes) -> None:
        assert self._fd is not None, "opened before"
        try:
            while line:
                line = line[os.write(self._fd, line) :]
        except BrokenPipeError:  # a FIFO without a reader: the next reader gets the next line
            os.close(self._fd)
            self._fd = None
            raise

    def _waits_for_reader(self, error: OSError) -> bool:
        return error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(self.path).st_mode)

    def _reason(self, error: OSError) -> str:
        if isinstance(error, BrokenPipeError) or error.errno == errno.ENXIO:
            return "it is a FIFO without a reader"
        if isinstance(error, BlockingIOError):
            return "it is a FIFO whose reader is too slow"
        return error.strerror or str(error)
