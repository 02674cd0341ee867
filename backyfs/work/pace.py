"""Describe the progress of an operation briefly: `38.3% 292.1MiB/s ETA 2s`. Pure: the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.model import Unit
from backyfs.text import human_size

if TYPE_CHECKING:
    from backyfs.model import JobProgress

_SETTLED_S = 0.5  # a rate measured for less time is meaningless
_FORESEEABLE_S = 100 * 86400


@dataclass(slots=True, kw_only=True)
class Pace:
    """Bytes done out of a total, and when the operation started."""

    total_bytes: int
    started: float  # seconds on the monotonic clock
    done_bytes: int = 0

    def text(self, now: float) -> str:
        """Return percentage, average rate and remaining time, if known, in at most 40 characters."""
        words = []
        if self.total_bytes > 0:
            words.append(f"{min(100.0, 100 * self.done_bytes / self.total_bytes):.1f}%")
        elapsed_s = now - self.started
        if elapsed_s >= _SETTLED_S and self.done_bytes > 0:
            rate = self.done_bytes / elapsed_s
            words.append(f"{human_size(rate, separator='')}/s")
            left_s = max(0, self.total_bytes - self.done_bytes) / rate
            if self.total_bytes > 0 and left_s < _FORESEEABLE_S:
                words.append(f"ETA {short_time(left_s)}")
        return " ".join(words)


def progress_text(progress: JobProgress | None) -> str:
    """Return the progress of a job in words, as of its last heartbeat; empty if no step is under way."""
    if progress is None:
        return ""
    if progress.unit is Unit.BYTES:
        return Pace(total_bytes=progress.total, started=0.0, done_bytes=progress.done).text(progress.elapsed_s)
    return f"{progress.done} of {progress.total} {progress.unit}"


def short_time(seconds: float) -> str:
    """Return a duration in its two largest units: `2s`, `3m12s`, `1h05m`, `2d03h`."""
    rest = round(seconds)
    if rest < 60:
        return f"{rest}s"
    if rest < 3600:
        return f"{rest // 60}m{rest % 60:02}s"
    if rest < 86400:
        return f"{rest // 3600}h{rest % 3600 // 60:02}m"
    return f"{rest // 86400}d{rest % 86400 // 3600:02}h"
