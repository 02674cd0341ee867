"""Watch jobs that have been silent for a minute until they beat again or are known to be dead.

Heartbeats are times of the database's clock, which can be set forward. Then the heartbeats of all live jobs look old.
So the monotonic clock of this process decides: a live job beats several times while it is watched, and one that does
not is dead.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from backyfs.errors import InterruptedByUser
from backyfs.metadata.records.jobs import HEARTBEAT_S, list_live_jobs, remove_silent, silent_jobs
from backyfs.metadata.records.processes import this_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.metadata.db.database import Database

WATCH_S = 2.5 * HEARTBEAT_S  # one heartbeat may fail, and the database may be slow
LOOK_EVERY_S = 0.5

_log = logging.getLogger(__name__)


def remove_silent_jobs(
    database: Database, *, stop: Callable[[], bool] = lambda: False, records: bool = True
) -> None:
    """Remove dead jobs of other hosts, and jobs that hang. Call this before refusing anything because of a job.

    It returns immediately if no heartbeat is old, and otherwise within `WATCH_S` seconds. With `records`, each dead job
    becomes a run; an older schema has no runs.

    Raises:
        InterruptedByUser: `stop` returned True.
        DatabaseError: the database fails.
    """
    observer = this_process()
    with database.read() as connection:
        silent = silent_jobs(connection, observer)
        names = "; ".join(str(job) for job in list_live_jobs(connection, observer) if job.id in silent)
    if not silent or database.is_read_only:
        return
    _log.info("waiting for up to %.0f s to see whether these commands are still alive: %s", WATCH_S, names)
    end = time.monotonic() + WATCH_S
    while silent and time.monotonic() < end:
        if stop():
            raise InterruptedByUser("interrupted while watching commands that may be dead; nothing was changed")
        time.sleep(LOOK_EVERY_S)
        with database.read() as connection:
            now_silent = silent_jobs(connection, observer)
        silent = {job_id: beat for job_id, beat in silent.items() if now_silent.get(job_id) == beat}
    if silent:
        with database.write() as connection:
            remove_silent(connection, silent, records=records)
