"""Log to stderr or the journal, and to the configured file, as text or as lines of JSON.

Every message is one line. The error that ends a command is logged like any other message, so it is also in the file.
"""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import socket
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from backyfs.cli.logfile import LogFile
from backyfs.cli.remedies import render
from backyfs.cli.requests import requests_text
from backyfs.cli.text import printable
from backyfs.errors import ConfigError
from backyfs.reports.requests import requests_by_verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backyfs.config import Config
    from backyfs.errors import OutputError
    from backyfs.model import RequestCounts

_ROOT = "backyfs"
_RECORD = "backyfs.record"  # the logger for starts, results and requests of commands, which do not go to stderr
_WITH_TRACEBACKS = logging.DEBUG - 1  # the level of --debug: the same messages, with tracebacks of errors
_STDERR_FORMAT = "backyfs: %(message)s"
_FILE_FORMAT = "%(asctime)s [%(process)d] %(levelname)s %(message)s"
_JOURNAL_FORMAT = "%(message)s"  # the journal adds time, program and process
# With these errors a command continues without its log file: a restore must work especially now.
_GO_ON_WITHOUT = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT})
_LEVELS = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))  # syslog(3)


def start_logging(*, command: str, verbose: bool, debug: bool, quiet: bool) -> None:
    """Send the log to stderr; `command` is the name of the running command."""
    level = logging.INFO
    if debug:
        level = _WITH_TRACEBACKS
    elif verbose:
        level = logging.DEBUG
    elif quiet:
        level = logging.ERROR
    root = logging.getLogger(_ROOT)
    for handler in list(root.handlers):  # left by an earlier run in this process
        root.removeHandler(handler)
        handler.close()
    handler = logging.StreamHandler()
    handler.setFormatter(_JournalLine(command) if _stderr_is_journal() else _Line(command, _STDERR_FORMAT))
    handler.setLevel(level)
    handler.addFilter(lambda record: record.name != _RECORD)
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    root.propagate = False


def follow_config(config: Config) -> None:
    """Log to the configured file, in the configured format.

    Raises:
        ConfigError: the file cannot be written.
    """
    root = logging.getLogger(_ROOT)
    if config.logfile is not None:
        _add_file(root, config.logfile)
    for handler in root.handlers:
        if isinstance(handler.formatter, _Line):
            handler.formatter.as_json = config.log_format == "json"


def log_start(command_line: str) -> None:
    """Log that a command begins; `command_line` contains no secrets."""
    logging.getLogger(_RECORD).info("%s", command_line)


def log_result(command: str, exit_status: int, duration_s: float, results: Mapping[str, object]) -> None:
    """Log how a command ended, and its results."""
    known = {name: value for name, value in results.items() if value is not None}
    found = "".join(f", {name} {value}" for name, value in known.items())
    logging.getLogger(_RECORD).info(
        "%s ended with status %d after %.1f s%s",
        command,
        exit_status,
        duration_s,
        found,
        extra={"exit_status": exit_status, "duration_s": round(duration_s, 3), "results": known},
    )


def log_requests(counts: RequestCounts) -> None:
    """Log what a command cost in requests to its storage."""
    known = {"requests": requests_by_verb(counts)}
    logging.getLogger(_RECORD).info("%s", requests_text(counts), extra={"results": known})


def log_answer(text: str) -> None:
    """Log the answer to a signal, and print it on stderr even if the command is quiet."""
    root = logging.getLogger(_ROOT)
    root.info("%s", text)
    on_stderr = [known for known in root.handlers if type(known) is logging.StreamHandler]
    if not any(known.level <= logging.INFO for known in on_stderr):
        click.echo(f"backyfs: {printable(text)}", err=True)


def log_lost_output(error: OutputError) -> None:
    """Log that a command has done its work but could not print its result."""
    logging.getLogger(_ROOT).error("the command has ended, but its output is lost: %s", error)


def log_lost_metrics(error: Exception) -> None:
    """Log that a command could not write its metrics because of an unexpected error."""
    logging.getLogger(_ROOT).error(
        "metrics are not written: unexpected %s: %s; run it again with --debug and report it",
        type(error).__name__,
        error,
    )


def log_end(message: str, exit_status: int, *, error: BaseException | None = None) -> None:
    """Log the error that ends the command: on stderr one line, `backyfs: error: ...`; with --debug its traceback."""
    root = logging.getLogger(_ROOT)
    if error is not None and root.isEnabledFor(_WITH_TRACEBACKS):
        root.debug("the error occurred here", exc_info=error)
    if root.handlers:
        root.error("%s", message, extra={"exit_status": exit_status})
    else:  # an error in the global options
        click.echo(f"backyfs: error: {printable(message)}", err=True)


class _Line(logging.Formatter):
    """Formats a message as one line, even with unusual names in it. A traceback follows on separate lines.

    Errors and remedies that the library logs are worded for the command line.
    """

    def __init__(self, command: str, form: str) -> None:
        super().__init__(form)
        self.as_json = False
        self.command = command

    def format(self, record: logging.LogRecord) -> str:
        values = record.args
        if isinstance(values, tuple):
            record = copy.copy(record)  # other handlers get the same record
            record.args = tuple(map(render, values))
        return self._json(record) if self.as_json else super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of logging
        if hasattr(record, "exit_status") and self._fmt == _STDERR_FORMAT:
            record.message = f"error: {record.message}"
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name of logging
        return "\n".join(map(printable, super().formatException(ei).split("\n")))

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
        for name in ("exit_status", "duration_s"):
            if hasattr(record, name):
                facts[name] = getattr(record, name)
        facts.update(getattr(record, "results", {}))
        if record.exc_info:
            facts["traceback"] = self.formatException(record.exc_info)
        return json.dumps(facts, default=str)


class _JournalLine(_Line):
    """The same with a level before each line, as sd-daemon(3) defines for stderr."""

    def __init__(self, command: str) -> None:
        super().__init__(command, _JOURNAL_FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        number = next((number for level, number in _LEVELS if record.levelno >= level), 7)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def _stderr_is_journal() -> bool:
    """Return whether stderr goes to the journal: systemd.exec(5), JOURNAL_STREAM.

    The variable is compared with the file, because programs with another stderr inherit it too.
    """
    try:
        about = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{about.st_dev}:{about.st_ino}"


def _add_file(root: logging.Logger, path: str) -> None:
    if os.path.abspath(path) in [known.path for known in root.handlers if isinstance(known, LogFile)]:
        return  # from an earlier call
    command = next((known.formatter.command for known in root.handlers if isinstance(known.formatter, _Line)), "")
    try:
        handler = LogFile(path)
    except OSError as error:
        if error.errno in _GO_ON_WITHOUT:
            root.warning("cannot write to the log file %s: %s", path, error.strerror)
            return
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}",
            section="DEFAULTS",
            key="logfile",
            remedy="name another file or remove the key",
        ) from error
    handler.setFormatter(_Line(command, _FILE_FORMAT))
    handler.setLevel(logging.INFO)
    root.addHandler(handler)
