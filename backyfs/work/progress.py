"""Progress that is passed on while it is shown: numbers to the row of a job, text to the title of the process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from backyfs.model import JobProgress
from backyfs.work.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Progress


class CountedProgress:
    """Shows what it is given, and counts it. For one thread; any thread may ask for the numbers."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._label = ""
        self._total_bytes = 0
        self._done_bytes = 0
        self._started: float | None = None  # monotonic; None: no step is under way

    def start(self, label: str, total_bytes: int) -> None:
        """Begin a step at 0."""
        self._shown.start(label, total_bytes)
        self._started = None
        self._label, self._total_bytes, self._done_bytes = label, total_bytes, 0
        self._started = time.monotonic()

    def advance(self, amount_bytes: int) -> None:
        """Count."""
        self._shown.advance(amount_bytes)
        self._done_bytes += amount_bytes

    def stop(self) -> None:
        """End the step."""
        self._shown.stop()
        self._started = None

    def numbers(self) -> JobProgress | None:
        """Return how far the step has got; None: none is under way."""
        started = self._started
        if started is None:
            return None
        return JobProgress(
            label=self._label,
            done=self._done_bytes,
            total=self._total_bytes,
            elapsed_s=max(0.0, time.monotonic() - started),
        )


class TellingProgress:
    """Shows what it is told; tells label and pace, as text, at most every so many seconds. For one thread."""

    def __init__(
        self, shown: Progress, tell: Callable[[str, str], None], end: Callable[[], None], *, every_s: float
    ) -> None:
        """Tell `tell` of every step, and `end` when the display is taken away."""
        self._shown = shown
        self._tell = tell
        self._end = end
        self._every_s = every_s
        self._label = ""
        self._pace = Pace(total_bytes=0, started=0.0)
        self._is_shown = False
        self._told = 0.0

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to count anew."""
        self._shown.start(label, total_bytes)
        self._label = label
        self._pace = Pace(total_bytes=total_bytes, started=time.monotonic())
        self._is_shown = True
        self._say(self._pace.started)

    def advance(self, amount_bytes: int) -> None:
        """Count, and put it into words now and then: making the text takes longer than counting."""
        self._shown.advance(amount_bytes)
        self._pace.done_bytes += amount_bytes
        now = time.monotonic()
        if now - self._told >= self._every_s:
            self._say(now)

    def stop(self) -> None:
        """Take the display away."""
        self._shown.stop()
        self._is_shown = False
        self._end()

    def text(self) -> str:
        """Return the pace as it is now, in any thread; empty while nothing is shown.

        What was told last is older than that where nothing advances for a while.
        """
        return self._pace.text(time.monotonic()) if self._is_shown else ""

    def now(self) -> str:
        """Return what is being done and how far it is, as text; empty before the start and after the end."""
        if not self._is_shown:
            return ""
        pace = self.text()
        return f"{self._label}: {pace}" if pace else self._label

    def _say(self, now: float) -> None:
        self._told = now
        self._tell(self._label, self._pace.text(now))
