"""What was put into a storage and is not durable yet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushLimits:
    """When a batch is to be flushed: whichever comes first."""

    stored_bytes: int = 64 << 20
    items: int = 4096
    seconds: float = 5.0  # a command that is killed repeats no more than it did in this time


@dataclass(slots=True)
class FlushBatch(Generic[T]):
    """Objects that were put since the last flush, and what is to become of them. For one thread."""

    limits: FlushLimits
    items: list[T] = field(default_factory=list)
    stored_bytes: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, item: T, stored_bytes: int) -> None:
        """Add an object of this size."""
        self.items.append(item)
        self.stored_bytes += stored_bytes

    def is_due(self, seconds: float | None = None) -> bool:
        """Tell whether to flush; `seconds` takes the place of that limit."""
        limits = self.limits
        return bool(self.items) and (
            self.stored_bytes >= limits.stored_bytes
            or len(self.items) >= limits.items
            or time.monotonic() - self._since >= (limits.seconds if seconds is None else seconds)
        )

    def take(self) -> list[T]:
        """Return what there is, and begin a new batch."""
        taken, self.items = self.items, []
        self.stored_bytes = 0
        self._since = time.monotonic()
        return taken
