"""Limit how much a command does in one step.

Larger steps are faster, but need more memory, make others wait longer, and repeat more work after a kill.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backyfs.metadata.records.runs import RunLimits
from backyfs.work.flushbatch import FlushLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one command. The defaults suit all repositories; tests use others."""

    workers: int | None = None    # threads; None: as many as keep processors and storage busy
    flush: FlushLimits = field(default_factory=FlushLimits)
    first_flush_s: float = 1.0    # minimum time between the first flushes of a backup; grows up to `flush.seconds`
    commit_s: float = 2.0         # between commits of incomplete pages, from which an interrupted backup continues
    pages_at_once: int = 16       # changed or removed in one transaction: about 16,000 counts, 50 ms
    blobs_at_once: int = 4000     # doomed in one transaction, and their rows removed in another
    deletions_a_task: int = 250   # objects, unless the storage deletes more in one request
    checks_at_once: int = 4096    # blobs whose results are recorded together
    checks_s: float = 5.0         # record results after this time at the latest; a killed scrub repeats no more
    runs: RunLimits = field(default_factory=RunLimits)  # of finished commands that are kept


DEFAULT_LIMITS = Limits()
