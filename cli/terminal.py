"""Progress on a terminal: a bar with rate and remaining time."""

from __future__ import annotations

import time

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

_QUIET_S = 1.0  # what is done sooner needs no progress


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
