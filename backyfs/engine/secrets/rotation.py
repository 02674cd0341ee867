"""Give a repository another repository key.

Anyone who has the old key and a copy of the database can open every data key in that copy. A new repository key alone
does not lock them out: blobs must be re-sealed under new data keys (`engine.secrets.migrate`), and their old objects
deleted. The repository key comes first, because it wraps all new data keys.

This is one transaction: if it is killed, the repository has the old key or the new one. Only the slot of the
configured key or passphrase can be rewritten, since the others would need theirs. All other slots are removed, which
is intended when somebody leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.engine.secrets.keyslots import require_slots
from backyfs.engine.secrets.rewrapping import require_quiet, rewrap_data_keys, rewrapped_key
from backyfs.errors import KeyMaterialError, UsageError, WrongKeyError
from backyfs.keys.slots import Secret, make_slot, open_with
from backyfs.metadata.records.identity import (
    list_key_slots,
    load_identity,
    load_key_date,
    replace_key_slots,
    save_fingerprint_key,
    save_identity_tag,
    save_key_date,
)
from backyfs.metadata.records.wrapped_keys import KEYS_AT_ONCE
from backyfs.repository.keyring import configured_secret, require_identity, tag_of
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.metadata.db.database import Database
    from backyfs.model import KeySlot
    from backyfs.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationReport:
    """What was done."""

    slot: KeySlot                # that the configured key or passphrase opens
    removed: tuple[KeySlot, ...]  # that no longer open anything
    rewrapped: int               # data keys
    left: int                    # data keys that the old key did not open: unreadable, as before


def rotate_configured(
    repository: Repository, ask: Callable[[], str] | None, *, older_than: datetime
) -> RotationReport | None:
    """Make a new repository key that the configured key or passphrase opens, or a passphrase that `ask` returns.

    Raises:
        UsageError: nothing is configured, and nobody is there to answer.
        What `rotate_repository_key` raises.
    """
    secret = configured_secret(repository.config)
    if secret is None and ask is not None:
        secret = Secret(passphrase=ask())
    if secret is None:
        raise UsageError("a new key needs a key slot, and the configuration has neither key nor passphrase")
    report = rotate_repository_key(repository.database, secret, older_than=older_than)
    if report is not None:
        # This repository was opened with the old key and cannot write the catalog. `Service.publish` does.
        repository.database.has_written = False
    return report


def rotate_repository_key(
    database: Database, secret: Secret, *, older_than: datetime, keys_at_once: int = KEYS_AT_ONCE
) -> RotationReport | None:
    """Make a new repository key, unless the current one was made since `older_than`: then return None.

    `secret` opens the repository before and after. Blobs are not changed.

    Raises:
        MissingKeyError: the repository has no key slots.
        WrongKeyError: `secret` is not its key.
        IntegrityError: its slot is damaged.
        KeyMaterialError: another command changed the slots in the meantime.
        JobsRunningError: commands are running, which would continue with the old key.
        DatabaseError: the database fails; nothing was done.
    """
    with database.read() as connection:
        slots = list_key_slots(connection)
        made_at = load_key_date(connection) or load_identity(connection).created_at
    if made_at >= older_than:
        return None
    require_slots(slots)
    opened = open_with(slots, secret)
    new_key = keys.new_key()
    now = datetime.now(UTC)
    slot = make_slot(secret, new_key, label=opened.slot.label, created_at=now)
    remove_silent_jobs(database)
    with database.write() as connection:
        require_quiet(connection)
        if list_key_slots(connection) != slots:
            raise KeyMaterialError(
                "another command changed the key slots in the meantime", remedy="run the command again"
            )
        rewrapped, left = rewrap_data_keys(connection, opened.repository_key, new_key, keys_at_once)
        if left and not rewrapped:
            raise WrongKeyError(
                "opens none of the data keys of this repository, the first of which belongs to blob "
                f"{left[0]}; nothing was changed",
                subject=f"the key in slot {slot.label!r}",
            )
        fingerprint_key = require_identity(connection, opened.repository_key).wrapped_fingerprint_key
        if fingerprint_key is not None:
            save_fingerprint_key(connection, rewrapped_key(fingerprint_key, opened.repository_key, new_key))
        replace_key_slots(connection, [slot])
        save_key_date(connection, now)
        save_identity_tag(connection, tag_of(load_identity(connection), new_key))
    removed = tuple(other for other in slots if other != opened.slot)
    return RotationReport(slot=slot, removed=removed, rewrapped=rewrapped, left=len(left))
