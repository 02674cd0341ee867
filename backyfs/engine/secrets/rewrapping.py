"""Re-wrap the data keys of all blobs under another key, within a transaction of the caller."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.errors import IntegrityError, JobsRunningError
from backyfs.metadata.records.jobs import list_live_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.wrapped_keys import KEYS_AT_ONCE, replace_wrapped_keys, wrapped_keys

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection


def require_quiet(connection: Connection) -> None:
    """Make sure that no command is running, because it would continue to wrap data keys under the old key.

    Raises:
        JobsRunningError: there are some; the message lists them.
    """
    running = list_live_jobs(connection, this_process())
    if running:
        names = ", ".join(str(job) for job in running)
        raise JobsRunningError(
            f"are in use by {names}", subject="the data keys", remedy="wait until these commands end, or end them"
        )


def rewrap_data_keys(
    connection: Connection, old_key: bytes, new_key: bytes, keys_at_once: int = KEYS_AT_ONCE
) -> tuple[int, list[str]]:
    """Re-wrap all data keys; return how many, and the uids of the blobs whose keys the old key does not open.

    If it opens none of the first few thousand, nothing is changed and the rest is not tried.
    """
    rewrapped = 0
    left: list[str] = []
    for batch in wrapped_keys(connection, keys_at_once):
        changed = []
        for row in batch:
            try:
                wrapped = rewrapped_key(row.wrapped_key, old_key, new_key)
            except IntegrityError:
                left.append(row.uid)
            else:
                changed.append(replace(row, wrapped_key=wrapped))
        replace_wrapped_keys(connection, changed)
        rewrapped += len(changed)
        if rewrapped == 0:
            break  # the wrong key is reported immediately
    return rewrapped, left


def rewrapped_key(wrapped: bytes, old_key: bytes, new_key: bytes) -> bytes:
    """Return a wrapped key wrapped by another key.

    Raises:
        IntegrityError: the old key does not open it.
    """
    return keys.wrap_key(new_key, keys.unwrap_key(old_key, wrapped))
