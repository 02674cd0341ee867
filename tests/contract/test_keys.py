"""Key slots and wrapped data keys: the same on every engine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.metadata.records import wrapped_keys
from backyfs.metadata.records.blobs import insert_blobs
from backyfs.metadata.records.identity import (
    Identity,
    add_key_slot,
    list_key_slots,
    load_identity,
    remove_key_slot,
    replace_key_slot,
    save_fingerprint_key,
    save_identity,
)
from backyfs.model import BlobUid, KeySlot, SavedBlob

if TYPE_CHECKING:
    from backyfs.metadata.db.database import Connection

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def slot(label: str, key_check: bytes) -> KeySlot:
    return KeySlot(
        label=label, kdf="argon2id", kdf_parameters='{"salt": "00"}', key_check=key_check, wrapped_key=bytes(40),
        created_at=NOW,
    )  # fmt: skip


def test_slots_are_replaced_and_removed_by_label(connection: Connection) -> None:
    first, second, third = slot("Ann", b"12345678"), slot("ann", b"abcdefgh"), slot("\u00e4nn \N{KEY}", bytes(8))
    for one in (first, second, third):
        add_key_slot(connection, one)
    changed = slot("ann", b"ABCDEFGH")
    replace_key_slot(connection, "ann", changed)
    assert list_key_slots(connection) == [first, changed, third]
    remove_key_slot(connection, "Ann")
    assert list_key_slots(connection) == [changed, third]


def test_the_fingerprint_key_is_replaced(connection: Connection) -> None:
    identity = Identity(
        uid="u", block_size=4096, hash_function="blake3", wrapped_fingerprint_key=bytes(40), created_at=NOW
    )
    save_identity(connection, identity)
    save_fingerprint_key(connection, b"\xff" * 40)
    assert load_identity(connection).wrapped_fingerprint_key == b"\xff" * 40


def test_wrapped_keys_are_replaced_in_batches(connection: Connection) -> None:
    # With every byte that could be mistaken for the end of something.
    keys = [None if number % 3 == 0 else bytes([number, 39, 92, 37, 0, 10, 255, 58]) * 5 for number in range(10)]
    insert_blobs(
        connection,
        [
            SavedBlob(
                uid=BlobUid(f"{number:032x}"), fingerprint=bytes([number]), size=1, stored_size=1,
                encryption_version=0 if key is None else 1, wrapped_key=key,
            )
            for number, key in enumerate(keys)
        ],
        NOW,
    )  # fmt: skip
    seen = []
    for batch in wrapped_keys.wrapped_keys(connection, at_once=3):
        assert len(batch) <= 3
        seen += [(row.uid, row.wrapped_key) for row in batch]
        wrapped_keys.replace_wrapped_keys(
            connection,
            [
                wrapped_keys.WrappedKey(blob_id=row.blob_id, uid=row.uid, wrapped_key=row.wrapped_key[::-1] + b"new")
                for row in batch
            ],
            in_a_statement=2,
        )
    expected = [(f"{number:032x}", key) for number, key in enumerate(keys) if key is not None]
    assert sorted(seen) == expected
    [*batches] = wrapped_keys.wrapped_keys(connection)
    assert sorted((row.uid, row.wrapped_key) for batch in batches for row in batch) == [
        (uid, key[::-1] + b"new") for uid, key in expected
    ]
