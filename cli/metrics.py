"""`--metrics-file`: what monitoring wants to know, written when a command has ended."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.config import load_config
from backyfs.errors import BackyfsError

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation
    from backyfs.engine.metrics import NameMetrics

_log = logging.getLogger("backyfs.cli")
_MODE = 0o644  # for the exporter, which runs as another user


@dataclass(slots=True)
class Record:
    """A run of the program: filled in as it goes on, told at its end."""

    metrics_file: str | None = None
    command: str = ""
    invocation: Invocation | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    _started_s: float = field(default_factory=time.monotonic)

    def write_metrics(self, status: int) -> None:
        """Write the file, if one was asked for; that it cannot be written is a warning.

        Of a repository that cannot be opened it tells the run alone, whose status says so.
        """
        if self.metrics_file is None:
            return
        from backyfs.engine.metrics import RunMetrics, render_metrics  # noqa: PLC0415 - SQLAlchemy is slow to load

        run = RunMetrics(
            command=self.command,
            exit_status=status,
            started_at=self.started_at,
            duration_s=time.monotonic() - self._started_s,
        )
        try:
            _replace(self.metrics_file, render_metrics(run, self._names()))
        except OSError as error:
            _log.warning("metrics are not written: %s: %s; name another file", self.metrics_file, error.strerror)

    def _names(self) -> list[NameMetrics]:
        from backyfs.engine.metrics import collect_metrics  # noqa: PLC0415 - SQLAlchemy is slow to load
        from backyfs.repository import open_repository  # noqa: PLC0415

        if self.invocation is None:
            return []
        try:
            config, _ = load_config(self.invocation.config_file, os.environ)
            with open_repository(config) as repository:
                return collect_metrics(repository, datetime.now(UTC))
        except BackyfsError as error:
            _log.debug("no metrics of the repository: %s", error)
            return []


def _replace(path: str, text: str) -> None:
    """Write a file whole or not at all: who reads it meanwhile sees the old one."""
    directory, name = os.path.split(os.path.abspath(path))
    descriptor, part = tempfile.mkstemp(dir=directory, prefix=f".{name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), _MODE)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
