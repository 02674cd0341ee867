"""Show progress on a terminal: a bar with rate and remaining time."""

from __future__ import annotations

import threading

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

from backyfs.cli.text import printable

_QUIET_S = 1.0  # faster operations show no progress


class TerminalProgress:
    """A bar with rate and remaining time on stderr, once an operation has taken a second."""

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
        self._timer: threading.Timer | None = None

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to measure; the bar appears later."""
        self.stop()
        self._task = self._bar.add_task(printable(label), total=total_bytes)
        # By a timer, not by the next call of `advance`, which may take minutes with a slow storage.
        self._timer = threading.Timer(_QUIET_S, self._bar.start)
        self._timer.daemon = True
        self._timer.start()

    def advance(self, amount_bytes: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, amount_bytes)

    def stop(self) -> None:
        """Remove the bar."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer.join()  # otherwise it might show the bar after the end
        self._timer = None
        if self._bar.live.is_started:
            self._bar.stop()
        self._bar.remove_task(self._task)
