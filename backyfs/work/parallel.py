"""Limit how many threads do something at the same time."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def at_most(threads: int | None) -> AbstractContextManager[object]:
    """Return a context that up to this many threads can be in at once; others wait. None: no limit."""
    return nullcontext() if threads is None else threading.Semaphore(threads)
