"""Let another configured key open a repository.

If there are key slots, only the row of the old key's slot is rewritten. A repository adopted from backy2 has none: its
data keys are wrapped by the old key itself. It gets a repository key, and every data key is re-wrapped, all in one
transaction. If this is killed, the database is either the old one or the new one.

Running commands would continue to store data keys wrapped by the old key, so re-wrapping is refused while there are
any. `Database.precondition` stops a command that has read the old key and begins to write later.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs import keys
from backyfs.engine.secrets.rewrapping import require_quiet, rewrap_data_keys, rewrapped_key
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
from backyfs.remedies import Advice
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

    slot: KeySlot   # that the configured key now opens
    rewrapped: int  # data keys; 0: changing a slot was enough
    left: int       # data keys that the old key does not open, left as they are
    changed: bool   # False: the configured key opened the repository already


_log = logging.getLogger(__name__)


def rekey(
    config: Config,
    database: Database,
    old: Secret,
    *,
    leave_damaged: bool = False,
    keys_at_once: int = KEYS_AT_ONCE,
) -> RekeyReport:
    """Let the configured key open the repository in place of `old`.

    With `leave_damaged`, data keys that the old key does not open are left as they are: unreadable, as before.

    Raises:
        MissingKeyError: there is no key in the configuration, or nothing is encrypted.
        WrongKeyError: `old` is not the key of the repository.
        IntegrityError: the slot of the old key is damaged, or data keys are.
        JobsRunningError: commands are running, and the data keys have to be re-wrapped.
        DatabaseError: the database fails; nothing was done.
    """
    new = configured_secret(config)
    if new is None:
        raise MissingKeyError(
            "has no key, but must have the new one",
            subject="the configuration",
            remedy="set encryption_key_file, encryption_key_command or encryption_key",
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
                "another command changed the key slots in the meantime", remedy=Advice.LIST_KEY_SLOTS()
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
            "are wrapped by the key of backy2, 64 hex digits, and not by a passphrase",
            subject="the data keys of this repository",
            remedy=Advice.GIVE_OLD_KEY(),
        )
    repository_key = keys.new_key()
    slot = make_slot(new, repository_key, label=FIRST_SLOT, created_at=datetime.now(UTC))
    remove_silent_jobs(database)
    with database.write() as connection:
        require_quiet(connection)
        if list_key_slots(connection):
            raise KeyMaterialError(
                "another command gave the repository a key in the meantime", remedy="run the command again"
            )
        rewrapped, left = rewrap_data_keys(connection, old.key, repository_key, keys_at_once)
        if rewrapped == 0:
            raise _nothing_opened(left, old.key)
        if left and not leave_damaged:
            raise IntegrityError(
                f"does not open {len(left)} data keys, the first that of blob {left[0]}; nothing was changed",
                subject="the old key",
                remedy=Advice.LEAVE_DAMAGED_KEYS(),
            )
        fingerprint_key = require_identity(connection, old.key).wrapped_fingerprint_key
        if fingerprint_key is not None:
            save_fingerprint_key(connection, rewrapped_key(fingerprint_key, old.key, repository_key))
        add_key_slot(connection, slot)
        save_key_date(connection, slot.created_at)
        save_identity_tag(connection, tag_of(load_identity(connection), repository_key))
    if left:
        _log.warning("the old key did not open %d data keys, which were left as they are", len(left))
    return RekeyReport(slot=slot, rewrapped=rewrapped, left=len(left), changed=True)


def _nothing_opened(left: list[str], old_key: bytes) -> KeyMaterialError:
    if not left:
        return MissingKeyError("nothing in this repository is encrypted yet; the configured key can be used as it is")
    return WrongKeyError(
        "opens none of the data keys of this repository",
        subject=f"the old key {keys.show_check(keys.key_check(old_key))}",
        remedy="give the key that backy2 used last",
    )
