"""How widely a command works: in how many threads, and on how many blocks in one task of a thread."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.storage.protocol import Traits

_TASK_BYTES = 4 << 20   # small blocks are handled in groups of up to this many bytes and
_TASK_BLOCKS = 256      # this many blocks: starting a task costs as much as several blocks of 4 KiB
_BYTES_AT_ONCE = 64 << 20  # of blocks in all tasks together that wait for a storage


def processors() -> int:
    """Return how many processors this process can use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class Width:
    """How many threads work, and how many blocks each of their tasks has."""

    workers: int
    blocks: int
    waiting: int | None = None  # further threads for tasks that only wait for a network; None: there are no such tasks

    @classmethod
    def of(cls, traits: Traits, block_size: int, *, workers: int | None = None) -> Width:
        """Return the width that keeps every processor and the storage busy, or that of `workers`.

        A storage that answers as fast as the host works needs one thread more than there are processors, because one
        of them waits for a disk. A storage behind a network is busy only with many requests at once, each from a task
        with a single block; the memory of these tasks is limited.
        """
        if traits.requests is None:
            return cls(workers or processors() + 1, max(1, min(_TASK_BLOCKS, _TASK_BYTES // block_size)))
        worthwhile = max(processors() + 1, min(traits.requests, _BYTES_AT_ONCE // block_size))
        return cls(workers or worthwhile, 1, workers or traits.requests)
