"""Show progress as lines in the log."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from backyfs.text import human_size

_log = logging.getLogger("backyfs.cli")

_LOG_EVERY_S = 30.0


@dataclass(slots=True)
class LogProgress:
    """A line in the log every half minute."""

    label: str = ""
    total_bytes: int = 0
    done_bytes: int = 0
    started: float = 0.0
    logged: float = 0.0

    def start(self, label: str, total_bytes: int) -> None:
        """Begin to measure."""
        self.label = label
        self.total_bytes = total_bytes
        self.started = self.logged = time.monotonic()

    def advance(self, amount_bytes: int) -> None:
        """Count bytes, and log the progress unless that was done recently."""
        self.done_bytes += amount_bytes
        now = time.monotonic()
        if now - self.logged < _LOG_EVERY_S:
            return
        self.logged = now
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
        """Log nothing: the command reports its end."""
