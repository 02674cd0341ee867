"""The thread pools of a mount, one for each kind of work, so that a `stat` never waits behind the load of a block."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from backyfs.errors import DatabaseError, StorageError
from backyfs.mount.pool import Pool

_QUESTION_THREADS = 4  # for short questions to the database
_TABLE_THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """The pools of one mount."""

    wanted: Pool     # blocks that a reader waits for
    ahead: Pool      # blocks that are loaded before a reader asks for them
    questions: Pool  # to the database
    tables: Pool     # partition tables
    layers: Pool     # layers above writable images

    @property
    def timeouts(self) -> int:
        """How many calls timed out. A partition table times out with the blocks it waits for and is not counted."""
        return sum(pool.timeouts for pool in (self.wanted, self.ahead, self.questions, self.layers))


def make_pools(*, workers: int, patience_s: float) -> Pools:
    """Make the pools of a mount, with this many threads that load blocks. A reader waits up to `patience_s`."""
    pool = partial(Pool, patience_s=patience_s)
    return Pools(
        wanted=pool("the storage", StorageError, threads=workers),
        ahead=pool("the storage", StorageError, threads=workers),
        questions=pool("the database", DatabaseError, threads=_QUESTION_THREADS),
        # Reading a table loads blocks, so it gets twice the time that a block may take.
        tables=pool("the partition table", StorageError, threads=_TABLE_THREADS, patience_s=2 * patience_s),
        layers=pool("the layer", StorageError, threads=workers),
    )
