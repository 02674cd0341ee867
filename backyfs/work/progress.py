"""Forward progress while it is shown: as numbers to the row of a job, as text to the title of the process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backyfs.model import JobProgress
from backyfs.work.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Progress


class CountedProgress:
    """Forwards progress and counts it. For one thread, but any thread may read the numbers."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._label = ""
        self._total_bytes = 0
        self._done_bytes = 0
        self._started: float | None = None  # monotonic; None: no step is running

    def start(self, label: str, total_bytes: int) -> None:
        """Begin a step at 0."""
        self._shown.start(label, total_bytes)
        self._started = None
        self._label, self._total_bytes, self._done_bytes = label, total_bytes, 0
        self._started = time.monotonic()

    def advance(self, amount_bytes: int) -> None:
        """Count bytes as done."""
        self._shown.advance(amount_bytes)
        self._done_bytes += amount_bytes

    def stop(self) -> None:
        """End the step."""
        self._shown.stop()
        self._started = None

    def numbers(self) -> JobProgress | None:
        """Return the progress of the current step; None if no step is running."""
        started = self._started
        if started is None:
            return None
        return JobProgress(
            label=self._label,
            done=self._done_bytes,
            total=self._total_bytes,
            elapsed_s=max(0.0, time.monotonic() - started),
        )


class TextProgress:
    """Forwards progress, and reports it as text at most once per interval. For one thread."""

    def __init__(
        self, shown: Progress, report: Callable[[str, str], None], end: Callable[[], None], *, every_s: float
    ) -> None:
        """Call `report` with label and pace, and `end` when the display is removed."""
        self._shown = shown
        self._report = report
        self._end = end
        self._every_s = every_s
        self._label = ""
        self._pace = Pace(total_bytes=0, started=0.0)
        self._is_shown = False
        self._reported = 0.0

    def start(self, label: str, total_bytes: int) -> None:
        """Begin a step at 0."""
        self._shown.start(label, total_bytes)
        self._label = label
        self._pace = Pace(total_bytes=total_bytes, started=time.monotonic())
        self._is_shown = True
        self._report_at(self._pace.started)

    def advance(self, amount_bytes: int) -> None:
        """Count bytes as done. Report only once per interval, because formatting takes longer than counting."""
        self._shown.advance(amount_bytes)
        self._pace.done_bytes += amount_bytes
        now = time.monotonic()
        if now - self._reported >= self._every_s:
            self._report_at(now)

    def stop(self) -> None:
        """Remove the display."""
        self._shown.stop()
        self._is_shown = False
        self._end()

    def text(self) -> str:
        """Return the current pace; empty while nothing is shown. Any thread may call this.

        The last report is older than this if nothing has advanced for a while.
        """
        return self._pace.text(time.monotonic()) if self._is_shown else ""

    def now(self) -> str:
        """Return label and pace of the current step as text; empty if no step is running."""
        if not self._is_shown:
            return ""
        pace = self.text()
        return f"{self._label}: {pace}" if pace else self._label

    def _report_at(self, now: float) -> None:
        self._reported = now
        self._report(self._label, self._pace.text(now))
