"""Wrap the data keys of all blobs under another key, within one transaction that is the caller's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.errors import IntegrityError, JobsRunningError
from backyfs.metadata.records.jobs import list_live_jobs, this_process
from backyfs.metadata.records.wrapped_keys import KEYS_AT_ONCE, replace_wrapped_keys, wrapped_keys

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection


def require_quiet(connection: Connection) -> None:
    """Make sure that no command is at work: it would go on to wrap data keys under the old key.

    Raises:
        JobsRunningError: some are; the message names them.
    """
    running = list_live_jobs(connection, this_process())
    if running:
        names = ", ".join(str(job) for job in running)
        raise JobsRunningError(f"the data keys are in use by {names}; wait for the end of these commands, or end them")


def rewrap_data_keys(
    connection: Connection, old_key: bytes, new_key: bytes, keys_at_once: int = KEYS_AT_ONCE
) -> tuple[int, list[str]]:
    """Wrap all data keys anew; return how many, and the uids of the blobs whose keys the old key does not open.

    If it opens none of the first few thousand, nothing is changed and the others are not looked at.
    """
    rewrapped = 0
    left: list[str] = []
    for batch in wrapped_keys(connection, keys_at_once):
        anew = []
        for row in batch:
            try:
                wrapped = wrap_anew(row.wrapped_key, old_key, new_key)
            except IntegrityError:
                left.append(row.uid)
            else:
                anew.append(replace(row, wrapped_key=wrapped))
        replace_wrapped_keys(connection, anew)
        rewrapped += len(anew)
        if rewrapped == 0:
            break  # the wrong key is told at once
    return rewrapped, left


def wrap_anew(wrapped: bytes, old_key: bytes, new_key: bytes) -> bytes:
    """Return a wrapped key wrapped by another key.

    Raises:
        IntegrityError: the old key does not open it.
    """
    return keys.wrap_key(new_key, keys.unwrap_key(old_key, wrapped))
