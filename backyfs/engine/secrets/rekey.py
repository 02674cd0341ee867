"""Give a repository another configured key.

Where there are key slots, the one of the old key is rewritten: a row. A repository that was adopted from backy2 has
none, its data keys are wrapped by the old key itself. It gets a repository key, and every data key is wrapped anew,
all in one transaction: killed anywhere, the database is the old one or the new one.

Commands that run with the old key would go on storing data keys that are wrapped by it, so that is refused while
there are any. One that has read the old key and begins later is stopped by `Database.precondition`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.engine.secrets.rewrapping import require_quiet, rewrap_data_keys, wrap_anew
from backyfs.errors import IntegrityError, KeyMaterialError, MissingKeyError, WrongKeyError
from backyfs.keys.slots import Secret, make_slot, open_with
from backyfs.metadata.records.identity import (
    add_key_slot,
    list_key_slots,
    load_identity,
    replace_key_slot,
    save_fingerprint_key,
    save_identity_tag,
    save_key_date,
)
from backyfs.metadata.records.wrapped_keys import KEYS_AT_ONCE
from backyfs.repository import check_agreement
from backyfs.repository.keyring import FIRST_SLOT, configured_secret, require_identity, tag_of
from backyfs.work.silence import remove_silent_jobs

if TYPE_CHECKING:
    from backyfs.config import Config
    from backyfs.keys.slots import OpenedSlot
    from backyfs.metadata.db.database import Database
    from backyfs.model import KeySlot


@dataclass(frozen=True, slots=True, kw_only=True)
class RekeyReport:
    """What was done."""

    slot: KeySlot   # that the configured key opens now
    rewrapped: int  # data keys that were wrapped anew; 0: a slot was enough
    left: int       # data keys that the old key does not open, and that stay as they are
    changed: bool   # not set: the configured key opened the repository already


_log = logging.getLogger(__name__)


def rekey(
    config: Config,
    database: Database,
    old: Secret,
    *,
    leave_damaged: bool = False,
    keys_at_once: int = KEYS_AT_ONCE,
) -> RekeyReport:
    """Let the configured key open the repository in the place of `old`, which does so now.

    With `leave_damaged`, data keys that the old key does not open stay as they are, unreadable as they were.

    Raises:
        MissingKeyError: there is no key in the configuration, or nothing is encrypted.
        WrongKeyError: `old` is not the key of the repository.
        IntegrityError: the slot of the old key is damaged, or data keys are.
        JobsRunningError: commands are at work, and the data keys would have to be wrapped anew.
        DatabaseError: the database fails; nothing was done.
    """
    new = configured_secret(config)
    if new is None:
        raise MissingKeyError(
            "the configuration has no key, and the new one is to stand there; set encryption_key_file, "
            "encryption_key_command or encryption_key"
        )
    with database.read() as connection:
        check_agreement(config, load_identity(connection))
        slots = list_key_slots(connection)
    if slots:
        return _rewrite_slot(database, slots, old, new)
    return _adopt(database, old, new, leave_damaged=leave_damaged, keys_at_once=keys_at_once)


def _rewrite_slot(database: Database, slots: list[KeySlot], old: Secret, new: Secret) -> RekeyReport:
    already = _opened_already(slots, new)
    if already is not None:
        with database.read() as connection:
            require_identity(connection, already.repository_key)
        return RekeyReport(slot=already.slot, rewrapped=0, left=0, changed=False)
    opened = open_with(slots, old)
    slot = make_slot(new, opened.repository_key, label=opened.slot.label, created_at=datetime.now(UTC))
    with database.write() as connection:
        if opened.slot not in list_key_slots(connection):
            raise KeyMaterialError(
                "another command changed the key slots in the meantime; `backyfs key list` shows them"
            )
        require_identity(connection, opened.repository_key)
        replace_key_slot(connection, opened.slot.label, slot)
    return RekeyReport(slot=slot, rewrapped=0, left=0, changed=True)


def _opened_already(slots: list[KeySlot], secret: Secret) -> OpenedSlot | None:
    try:
        return open_with(slots, secret)
    except (WrongKeyError, IntegrityError):
        return None


def _adopt(database: Database, old: Secret, new: Secret, *, leave_damaged: bool, keys_at_once: int) -> RekeyReport:
    if old.key is None:
        raise WrongKeyError(
            "the data keys of this repository are wrapped by the key of backy2, 64 hex digits, and not by a "
            "passphrase; give that key with --old-key-file"
        )
    repository_key = keys.new_key()
    slot = make_slot(new, repository_key, label=FIRST_SLOT, created_at=datetime.now(UTC))
    remove_silent_jobs(database)
    with database.write() as connection:
        require_quiet(connection)
        if list_key_slots(connection):
            raise KeyMaterialError("another command gave the repository its key meanwhile; run the command again")
        rewrapped, left = rewrap_data_keys(connection, old.key, repository_key, keys_at_once)
        if rewrapped == 0:
            raise _nothing_opened(left, old.key)
        if left and not leave_damaged:
            raise IntegrityError(
                f"{len(left)} data keys are not opened by the old key, the first one that of blob {left[0]}; nothing "
                "was changed. Add --leave-damaged to leave these blobs unreadable and go on"
            )
        fingerprint_key = require_identity(connection, old.key).wrapped_fingerprint_key
        if fingerprint_key is not None:
            save_fingerprint_key(connection, wrap_anew(fingerprint_key, old.key, repository_key))
        add_key_slot(connection, slot)
        save_key_date(connection, slot.created_at)
        save_identity_tag(connection, tag_of(load_identity(connection), repository_key))
    if left:
        _log.warning("%d data keys were not opened by the old key and stay as they were", len(left))
    return RekeyReport(slot=slot, rewrapped=rewrapped, left=len(left), changed=True)


def _nothing_opened(left: list[str], old_key: bytes) -> KeyMaterialError:
    if not left:
        return MissingKeyError("nothing in this repository is encrypted yet; the configured key is used as it is")
    return WrongKeyError(
        f"the old key {keys.show_check(keys.key_check(old_key))} opens none of the data keys of this repository; give "
        "the key that backy2 used last"
    )
