"""The counters of a mount, as the text of its file `stats`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.mount.cache import PieceCache
    from backyfs.mount.damage import DamageLog
    from backyfs.mount.pools import Pools
    from backyfs.mount.readers import Readers


class Statistics:
    """Counters since the mount began. Used by the tasks of one trio event loop."""

    def __init__(self, *, readers: Readers, cache: PieceCache, damage: DamageLog, pools: Pools) -> None:
        self._readers = readers
        self._cache = cache
        self._damage = damage
        self._pools = pools
        self._began = time.monotonic()
        self.write_errors = 0  # failed writes to layers: no room, or a bad disk below
        self.kernel_read_ahead_kib: int | None = None  # None: not known

    def text(self) -> bytes:
        """Return the counters, a name and a number on each line."""
        counted = {
            "uptime_s": int(time.monotonic() - self._began),
            "open_images": len(self._readers),
            "cache_size_bytes": self._cache.capacity_bytes,
            "cache_used_bytes": self._cache.used_bytes,
            "cache_hits": self._cache.hits,
            "loads": self._cache.loads,
            "loads_ahead": self._cache.loads_ahead,
            "loaded_bytes": self._cache.loaded_bytes,
            "damaged_blocks": self._damage.blocks,
            "read_errors": self._damage.read_errors,
            "write_errors": self.write_errors,
            "timeouts": self._pools.timeouts,
        }
        if self.kernel_read_ahead_kib is not None:
            counted["kernel_read_ahead_kib"] = self.kernel_read_ahead_kib
        return "".join(f"{name} {number}\n" for name, number in counted.items()).encode()
