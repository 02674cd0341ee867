"""The log: to stderr or the journal, and to the file that the configuration names; as text or as lines of JSON.

Every message is one line. The error that ends a command is a message like others, so it is in the file as well.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from backyfs.cli.text import printable
from backyfs.errors import ConfigError
from backyfs.files import open_file

if TYPE_CHECKING:
    from backyfs.config import Config

_ROOT = "backyfs"
_WITH_TRACEBACKS = logging.DEBUG - 1  # of --debug: the same messages, and where an error came about
_STDERR_FORMAT = "backyfs: %(message)s"
_FILE_FORMAT = "%(asctime)s [%(process)d] %(levelname)s %(message)s"
_JOURNAL_FORMAT = "%(message)s"  # the journal knows time, program and process
_NO_LOG = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # a log file that cannot be opened for one of these is left out
_LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))  # syslog(3)


def start_logging(*, command: str, verbose: bool, debug: bool, quiet: bool) -> None:
    """Send the log to stderr; `command` is the one that runs."""
    level = logging.INFO
    if debug:
        level = _WITH_TRACEBACKS
    elif verbose:
        level = logging.DEBUG
    elif quiet:
        level = logging.ERROR
    root = logging.getLogger(_ROOT)
    for handler in list(root.handlers):  # of an earlier run in this process
        root.removeHandler(handler)
        handler.close()
    handler = logging.StreamHandler()
    handler.setFormatter(_JournalLine(command) if _stderr_is_journal() else _Line(command, _STDERR_FORMAT))
    handler.setLevel(level)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    root.propagate = False


def follow_config(config: Config) -> None:
    """Log to the file that the configuration names, in the form that it wants.

    Raises:
        ConfigError: the file cannot be written.
    """
    root = logging.getLogger(_ROOT)
    if config.logfile is not None:
        _add_file(root, config.logfile)
    for handler in root.handlers:
        if isinstance(handler.formatter, _Line):
            handler.formatter.as_json = config.log_format == "json"


def log_end(message: str, exit_status: int, *, error: BaseException | None = None) -> None:
    """Log the error that ends the command: on stderr one line, `backyfs: error: ...`; with --debug its traceback."""
    root = logging.getLogger(_ROOT)
    if error is not None and root.isEnabledFor(_WITH_TRACEBACKS):
        root.debug("the error came about here", exc_info=error)
    if root.handlers:
        root.error("%s", message, extra={"exit_status": exit_status})
    else:  # an error in the global options
        click.echo(f"backyfs: error: {printable(message)}", err=True)


class _Line(logging.Formatter):
    """A message on one line, whatever names are in it; a traceback follows on lines of its own."""

    def __init__(self, command: str, form: str) -> None:
        super().__init__(form)
        self.as_json = False
        self.command = command

    def format(self, record: logging.LogRecord) -> str:
        return self._json(record) if self.as_json else super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging
        if hasattr(record, "exit_status") and self._fmt == _STDERR_FORMAT:
            record.message = f"error: {record.message}"
        return printable(super().formatMessage(record))

    def _json(self, record: logging.LogRecord) -> str:
        facts: dict[str, object] = {
            "time": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "command": self.command,
            "pid": record.process,
            "host": socket.gethostname(),
            "logger": record.name,
        }
        if hasattr(record, "exit_status"):
            facts["exit_status"] = record.exit_status
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts)


class _LogFile(logging.FileHandler):
    """The log file. Where it cannot be written, as on a full disk, that is said once, and the command goes on."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of logging
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            path = printable(self.baseFilename)
            click.echo(f"backyfs: the log file {path} cannot be written: {error.strerror}", err=True)


class _JournalLine(_Line):
    """The same with the level in front of each line, as sd-daemon(3) wants it on stderr."""

    def __init__(self, command: str) -> None:
        super().__init__(command, _JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        number = next((number for level, number in _LEVELS if record.levelno >= level), 7)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def _stderr_is_journal() -> bool:
    """Tell whether stderr goes to the journal: systemd.exec(5), JOURNAL_STREAM.

    The variable is inherited by programs whose stderr is another one: only the file itself tells.
    """
    try:
        about = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def _add_file(root: logging.Logger, path: str) -> None:
    files = [known.baseFilename for known in root.handlers if isinstance(known, logging.FileHandler)]
    if os.path.abspath(path) in files:
        return  # the configuration was read before
    command = next((known.formatter.command for known in root.handlers if isinstance(known.formatter, _Line)), "")
    try:
        os.close(open_file(path, os.O_WRONLY | os.O_APPEND))  # a new one belongs to the owner of its directory
        handler = _LogFile(path, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        if error.errno in _NO_LOG:  # of all times, this is one to restore something
            root.warning("the log file %s cannot be written: %s", path, error.strerror)
            return
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}; name another file or take the key out",
            section="DEFAULTS",
            key="logfile",
        ) from error
    handler.setFormatter(_Line(command, _FILE_FORMAT))
    handler.setLevel(logging.INFO)
    root.addHandler(handler)
