"""The settings of a mount."""

from __future__ import annotations

from dataclasses import dataclass, field

from backyfs.mount.live import Freshness
from backyfs.mount.pool import DEFAULT_PATIENCE_S
from backyfs.mount.selection import Selection

DEFAULT_CACHE_BYTES = 256 << 20  # 64 blocks of 4 MiB
DEFAULT_READ_AHEAD_BYTES = 32 << 20
_RATE = 1 << 30  # bytes/s that a sequential reader should get, however long the storage takes to answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a mount works."""

    cache_bytes: int = DEFAULT_CACHE_BYTES
    read_ahead_bytes: int = DEFAULT_READ_AHEAD_BYTES  # ahead of each sequential reader; 0: none
    workers: int | None = None  # threads that load blocks; None: as many as keep processors and storage busy
    patience_s: float = DEFAULT_PATIENCE_S  # how long a read waits for the storage or the database before it fails
    selection: Selection = field(default_factory=Selection)
    freshness: Freshness = field(default_factory=Freshness)

    def read_ahead_limit_bytes(self, round_trip_s: float) -> int:
        """Return how far to read ahead of a reader of a storage that takes so long to answer.

        Several readers share the cache, so read-ahead for one gets at most half of it.
        """
        if not self.read_ahead_bytes:
            return 0
        return min(max(self.read_ahead_bytes, int(_RATE * round_trip_s)), self.cache_bytes // 2)
