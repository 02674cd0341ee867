"""Key slots, and the key of a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs import keys

if TYPE_CHECKING:
    from backyfs.engine.secrets.keyslots import RepositoryKey
    from backyfs.model import KeySlot
    from backyfs.reports.values import Object, Row

COLUMNS = ("label", "kind", "kdf", "key_check", "created_at")


def slot_row(slot: KeySlot) -> Row:
    """Return a key slot."""
    is_key = slot.kdf == keys.KDF_CONFIGURED_KEY
    return {
        "label": slot.label,
        "kind": "key" if is_key else "passphrase",
        "kdf": None if is_key else slot.kdf,
        "key_check": keys.show_check(slot.key_check),
        "created_at": slot.created_at,
    }


def exported_as_object(file: str, found: RepositoryKey) -> Object:
    """Return where the recovery page is."""
    return {"file": file, "repository": found.repository, "key_check": check_of(found)}


def printed_as_object(found: RepositoryKey) -> Object:
    """Return the recovery page."""
    from backyfs.keys.recovery import write_groups  # noqa: PLC0415 - other commands print no page

    return {"repository": found.repository, "key_check": check_of(found), "groups": write_groups(found.key)}


def check_of(found: RepositoryKey) -> str:
    """Return the check value of the key, as people compare it."""
    return keys.show_check(keys.key_check(found.key))
