"""Collect objects that were written to a storage and are not durable yet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushLimits:
    """When to flush a batch: at the first limit that is reached."""

    stored_bytes: int = 64 << 20
    items: int = 4096
    seconds: float = 5.0  # after being killed, a command repeats at most the work of this time


@dataclass(slots=True)
class FlushBatch(Generic[T]):
    """Objects written since the last flush, and what to do with them afterwards. For one thread."""

    limits: FlushLimits
    items: list[T] = field(default_factory=list)
    stored_bytes: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, item: T, stored_bytes: int) -> None:
        """Add an object of this size."""
        self.items.append(item)
        self.stored_bytes += stored_bytes

    def is_due(self, seconds: float | None = None) -> bool:
        """Return whether to flush; `seconds` overrides the time limit."""
        limits = self.limits
        return bool(self.items) and (
            self.stored_bytes >= limits.stored_bytes
            or len(self.items) >= limits.items
            or time.monotonic() - self._since >= (limits.seconds if seconds is None else seconds)
        )

    def take(self) -> list[T]:
        """Return the items and begin a new batch."""
        taken, self.items = self.items, []
        self.stored_bytes = 0
        self._since = time.monotonic()
        return taken
