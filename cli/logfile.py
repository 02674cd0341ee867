"""The log file: one that is renamed or removed gets a successor, and nothing that happens to it ends a command.

A line is one write at the end of the file, so lines of several processes do not mix, and a signal handler may log
while a line is being written.
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
    """A file that log records are appended to, by its path.

    A FIFO is written to while somebody reads it. Nobody waits for its reader: what does not fit in is lost.
    """

    def __init__(self, path: str) -> None:
        """Open the file; a new one can be read by the owner of its directory alone.

        Raises:
            OSError: it cannot be opened.
        """
        super().__init__()
        self.path = os.path.abspath(path)  # a mount in the background changes its directory
        self._fd: int | None = None
        self._is_losing = False  # and has said so
        try:
            self._fd = open_file(self.path, _FLAGS)
        except OSError as error:
            if not self._waits_for_reader(error):
                raise

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record, to the file that has the name now."""
        line = f"{self.format(record)}\n".encode(errors="surrogateescape")
        try:
            self._follow_name()
            self._append(line)
        except OSError as error:
            if self._is_losing:
                return
            self._is_losing = True
            _log.warning("the log file %s is not written: %s", self.path, self._reason(error))
        else:
            self._is_losing = False

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        super().close()

    def _follow_name(self) -> None:
        """Open the file again if it was renamed or removed, as by logrotate. If that fails, keep the one there is."""
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
        except BrokenPipeError:  # a FIFO: its next reader gets the next line
            os.close(self._fd)
            self._fd = None
            raise

    def _waits_for_reader(self, error: OSError) -> bool:
        return error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(self.path).st_mode)

    def _reason(self, error: OSError) -> str:
        if isinstance(error, BrokenPipeError) or error.errno == errno.ENXIO:
            return "it is a FIFO that nobody reads"
        if isinstance(error, BlockingIOError):
            return "it is a FIFO whose reader is too slow"
        return error.strerror or str(error)
