"""The settings of a mount."""

from __future__ import annotations

from dataclasses import dataclass, field

from backyfs.mount.live import Freshness
from backyfs.mount.pool import DEFAULT_PATIENCE_S
from backyfs.mount.selection import Selection

DEFAULT_CACHE_BYTES = 256 << 20  # 64 blocks of 4 MiB
DEFAULT_READ_AHEAD_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a mount works."""

    cache_bytes: int = DEFAULT_CACHE_BYTES
    read_ahead_bytes: int = DEFAULT_READ_AHEAD_BYTES  # ahead of each sequential reader; 0: none
    workers: int | None = None  # threads that load blocks; None: one more than there are processors
    patience_s: float = DEFAULT_PATIENCE_S  # how long a read waits for the storage or the database before it fails
    selection: Selection = field(default_factory=Selection)
    freshness: Freshness = field(default_factory=Freshness)

    @property
    def read_ahead_limit_bytes(self) -> int:
        """How far to read ahead: several readers share the cache, so read-ahead for one gets at most half of it."""
        return min(self.read_ahead_bytes, self.cache_bytes // 2)
