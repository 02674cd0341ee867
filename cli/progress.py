"""Progress for people: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from backyfs.cli.output import human_size

_log = logging.getLogger("backyfs.cli")

_QUIET_S = 1.0  # what is done sooner needs no progress
_LOG_EVERY_S = 30.0


class TerminalProgress:
    """A bar with rate and remaining time on stderr, from the second second on."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = TaskID(0)
        self._started = 0.0
        self._shown = False

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to measure; the bar comes later."""
        self._task = self._bar.add_task(label, total=total_bytes)
        self._started = time.monotonic()

    def advance(self, amount_bytes: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, amount_bytes)
        if not self._shown and time.monotonic() - self._started > _QUIET_S:
            self._shown = True
            self._bar.start()

    def stop(self) -> None:
        """Take the bar away."""
        if self._shown:
            self._bar.stop()


@dataclass(slots=True)
class LogProgress:
    """A line in the log every half minute."""

    label: str = ""
    total_bytes: int = 0
    done_bytes: int = 0
    started: float = 0.0
    told: float = 0.0

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to measure."""
        self.label = label
        self.total_bytes = total_bytes
        self.started = self.told = time.monotonic()

    def advance(self, amount_bytes: int) -> None:
        """Tell how far it is, if that was not told lately."""
        self.done_bytes += amount_bytes
        now = time.monotonic()
        if now - self.told < _LOG_EVERY_S:
            return
        self.told = now
        rate = self.done_bytes / (now - self.started)
        remaining_s = (self.total_bytes - self.done_bytes) / rate if rate else 0.0
        _log.info(
            "%s: %s of %s (%.0f %%), %s/s, about %.0f s to go",
            self.label,
            human_size(self.done_bytes),
            human_size(self.total_bytes),
            100 * self.done_bytes / max(1, self.total_bytes),
            human_size(int(rate)),
            remaining_s,
        )

    def stop(self) -> None:
        """Tell nothing: the command tells its end."""
