"""Write the file of `--metrics-file` when a command has ended."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.cli.logs import log_result
from backyfs.config import CONFIG_VARIABLE, load_config
from backyfs.errors import BackyfsError
from backyfs.files import replace_file

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.config import Config
    from backyfs.engine.versions.metrics import NameMetrics

_log = logging.getLogger("backyfs.cli")
_MODE = 0o644  # for the exporter, which runs as another user
_BEGINNING = b"# HELP backyfs_"  # of every file that was written here


@dataclass(slots=True)
class Record:
    """A run of the program. It is filled in while the command runs, and written at its end."""

    words: tuple[str, ...] = ()  # after the name of the program
    metrics_file: str | None = None
    command: str = ""
    invocation: Invocation | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _started_s: float = field(default_factory=time.monotonic)

    def log_result(self, status: int) -> None:
        """Log how the command ended, if it has a log file."""
        if self.invocation is not None and self.invocation.loaded:
            log_result(self.command, status, time.monotonic() - self._started_s, self.invocation.results)

    def write_metrics(self, status: int) -> None:
        """Write the file, if it was requested. A failure is logged, and does not change the exit status.

        If the database cannot be read, the file describes only the run, whose status shows the failure.
        """
        if self.metrics_file is None:
            return
        from backyfs.engine.versions.metrics import (  # noqa: PLC0415 - SQLAlchemy is slow to load
            RunMetrics,
            render_metrics,
        )

        run = RunMetrics(
            config=self._config_file(),
            command=self.command,
            exit_status=status,
            started_at=self.started_at,
            duration_s=time.monotonic() - self._started_s,
            source_warnings={} if self.invocation is None else self.invocation.source_warnings,
        )
        try:
            path = os.path.realpath(self.metrics_file)  # a symbolic link stays one
            _check_ours(path, self._own_paths())
            replace_file(path, render_metrics(run, self._names()).encode(), _MODE)
        except OSError as error:
            # Not a warning: these are not shown with -q and -m.
            _log.error("metrics are not written: %s: %s; name another file", self.metrics_file, error.strerror)

    def _config_file(self) -> str:
        """Return the configuration that was named, empty if none was. It distinguishes the repositories of a host."""
        named = None if self.invocation is None else self.invocation.config_file
        named = os.environ.get(CONFIG_VARIABLE) if named is None else named
        return os.path.abspath(named) if named else ""

    def _names(self) -> list[NameMetrics]:
        from backyfs.engine.versions.metrics import repository_metrics  # noqa: PLC0415 - SQLAlchemy is slow to load

        try:
            config = self._config()
            if config is None:
                return []
            known = set() if self.invocation is None else self.invocation.odd_rows
            return repository_metrics(config, datetime.now(UTC), known_odd_rows=known)
        except BackyfsError as error:
            _log.debug("no metrics of the repository: %s", error)
            return []

    def _own_paths(self) -> tuple[str, ...]:
        from backyfs.ownfiles import configured_own_paths  # noqa: PLC0415 - SQLAlchemy is slow to load

        try:
            config = self._config()
            return () if config is None else configured_own_paths(config)
        except BackyfsError:  # the command has failed with it
            return ()

    def _config(self) -> Config | None:
        if self.invocation is None:
            return None
        if self.invocation.loaded:
            return self.invocation.loaded[0]
        return load_config(self.invocation.config_file, os.environ)[0]


def _check_ours(path: str, own_paths: tuple[str, ...]) -> None:
    """Make sure that a file is not there, empty or one of ours: a slip must not cost an image, nor /dev/null.

    Raises:
        OSError: it is something else, or a file of the repository, such as a log that is still empty.
    """
    from backyfs.ownfiles import find_own  # noqa: PLC0415 - most commands write no metrics

    if find_own(path, own_paths) is not None:
        raise FileExistsError(errno.EEXIST, "it belongs to the repository", path)
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return
    if is_file:
        with open(path, "rb") as file:
            if file.read(len(_BEGINNING)) in {b"", _BEGINNING}:
                return
    raise FileExistsError(errno.EEXIST, "it is there, and it is not a file of metrics", path)
