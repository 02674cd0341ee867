"""How much a command does at once. More is faster, but takes memory, lets others wait, and is repeated after a kill."""

from __future__ import annotations

from dataclasses import dataclass, field

from backyfs.work.flushbatch import FlushLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one command. The defaults are right for all repositories; tests use others."""

    flush: FlushLimits = field(default_factory=FlushLimits)
    first_flush_s: float = 1.0    # the least time between two flushes of a backup; it grows until `flush.seconds`
    commit_s: float = 2.0         # between two commits of incomplete pages: an interrupted backup continues from there
    pages_at_once: int = 16       # changed or removed in one transaction: some 16,000 counts, 50 ms
    blobs_at_once: int = 4096     # doomed in one transaction, and their rows removed in another
    deletions_a_task: int = 256   # objects
    checks_at_once: int = 4096    # blobs whose results are recorded together
    checks_s: float = 5.0         # or when the last time was so long ago: a scrub that is killed repeats no more


DEFAULT_LIMITS = Limits()
