"""The object of the repository: its identity and its key slots, which can be read without a key.

The slots cannot be encrypted, because they contain the key. The rest of the object is bound to them, so they are
authenticated once the key is known. Until then they are only used to try a key or a passphrase.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from backyfs import values
from backyfs.catalog.objects import (
    REPOSITORY_NAME,
    Kind,
    Parts,
    Seal,
    open_object,
    pack_object,
    take_apart,
)
from backyfs.errors import CatalogError
from backyfs.jsontext import key_slot, read_json, write_json
from backyfs.metadata.records.identity import Identity

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.model import KeySlot

_MAX_SLOTS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRepository:
    """A repository, as stored in the catalog."""

    identity: Identity
    key_slots: tuple[KeySlot, ...]
    key_made_at: datetime | None
    needs_release: str
    index_number: int = field(default=0, compare=False)  # of the first index that can name this object


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPart:
    """The part of the object of a repository that can be read without its key. It is not authenticated yet."""

    uid: str
    needs_release: str
    key_slots: tuple[KeySlot, ...]
    parts: Parts

    @property
    def is_sealed(self) -> bool:
        """Whether a key is needed."""
        return self.parts.is_sealed


def pack_repository(repository: CatalogRepository, key: bytes | None) -> bytes:
    """Return the object of a repository."""
    open_part = write_json(
        {
            "uid": repository.identity.uid,
            "needs_release": repository.needs_release,
            "key_slots": [asdict(slot) for slot in repository.key_slots],
        }
    )
    known = {"key_made_at": repository.key_made_at, "index_number": repository.index_number}
    content = write_json({**asdict(repository.identity), **known})
    by = Seal(repository=repository.identity.uid, key=key)
    return pack_object(Kind.REPOSITORY, REPOSITORY_NAME, by, content, open_part)


def read_open_part(stored: bytes) -> OpenPart:
    """Return the part that can be read without a key.

    Raises:
        CatalogError: this is not the object of a repository.
    """
    parts = take_apart(Kind.REPOSITORY, REPOSITORY_NAME, stored)
    try:
        fields = read_json(parts.open_part)
        found = OpenPart(
            uid=fields.value("uid", values.REPOSITORY_UID),
            needs_release=fields.value("needs_release", values.RELEASE),
            key_slots=tuple(map(key_slot, fields.objects("key_slots", _MAX_SLOTS))),
            parts=parts,
        )
    except ValueError as error:
        raise CatalogError(f"is damaged: {error}", subject=f"object {REPOSITORY_NAME}") from error
    return found


def open_repository_object(found: OpenPart, key: bytes | None) -> CatalogRepository:
    """Return the authenticated content of the object of a repository, with its key slots.

    Raises:
        CatalogError: it was written with another key, or is damaged.
    """
    content = open_object(found.parts, REPOSITORY_NAME, Seal(repository=found.uid, key=key))
    try:
        fields = read_json(content)
        identity = Identity(
            uid=fields.value("uid", values.REPOSITORY_UID),
            block_size=fields.value("block_size", values.BLOCK_SIZE),
            hash_function=fields.value("hash_function", values.HASH_FUNCTION),
            wrapped_fingerprint_key=fields.optional_raw("wrapped_fingerprint_key", values.FINGERPRINT_KEY),
            created_at=fields.time("created_at"),
        )
        made_at = fields.optional_time("key_made_at")
        index_number = fields.value("index_number", values.COUNT) if "index_number" in fields else 0
    except ValueError as error:
        raise CatalogError(f"is damaged: {error}", subject=f"object {REPOSITORY_NAME}") from error
    if identity.uid != found.uid:
        raise CatalogError("is damaged: it holds another uid", subject=f"object {REPOSITORY_NAME}")
    return CatalogRepository(
        identity=identity,
        key_slots=found.key_slots,
        key_made_at=made_at,
        needs_release=found.needs_release,
        index_number=index_number,
    )
