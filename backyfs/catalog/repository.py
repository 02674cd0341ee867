"""The object of the repository: the key slots, which can be read without a key, and what else the database has of it.

The slots have to be open: they are what gives the key. As the object is bound to them, they are checked as soon as
the key is there; until then nothing is done with them but to try a key or passphrase on them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from backyfs.catalog.jsontext import Fields, read_json, write_json
from backyfs.catalog.objects import (
    REPOSITORY_NAME,
    Kind,
    Parts,
    Seal,
    is_uid,
    open_object,
    pack_object,
    take_apart,
)
from backyfs.errors import CatalogError
from backyfs.metadata.identity import Identity
from backyfs.model import KeySlot

if TYPE_CHECKING:
    from datetime import datetime

_MAX_SLOTS = 256
_MAX_KEY = 64  # bytes of a wrapped key, see metadata.tables
_LABEL_LENGTH = 255
_PARAMETERS_LENGTH = 1024
_MAX_BLOCK_SIZE = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRepository:
    """What the catalog has of a repository."""

    identity: Identity
    key_slots: tuple[KeySlot, ...]
    key_made_at: datetime | None
    needs_release: str
    index_number: int = field(default=0, compare=False)  # of the first index that can name this object


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPart:
    """What can be read of the object of a repository without its key. Nothing vouches for it yet."""

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
    """Return what can be read without a key.

    Raises:
        CatalogError: this is no such object.
    """
    parts = take_apart(Kind.REPOSITORY, REPOSITORY_NAME, stored)
    try:
        fields = read_json(parts.open_part)
        found = OpenPart(
            uid=fields.text("uid", 36),
            needs_release=fields.text("needs_release", 32),
            key_slots=tuple(map(_slot, fields.objects("key_slots", _MAX_SLOTS))),
            parts=parts,
        )
    except ValueError as error:
        raise CatalogError(f"object {REPOSITORY_NAME} is damaged: {error}") from error
    if not is_uid(found.uid):
        raise CatalogError(f"object {REPOSITORY_NAME} is damaged: it has a uid that cannot be")
    return found


def open_repository_object(found: OpenPart, key: bytes | None) -> CatalogRepository:
    """Return what the object of a repository holds, checked, with the slots.

    Raises:
        CatalogError: it was not made with this key, or is damaged.
    """
    content = open_object(found.parts, REPOSITORY_NAME, Seal(repository=found.uid, key=key))
    try:
        fields = read_json(content)
        identity = Identity(
            uid=fields.text("uid", 36),
            block_size=fields.number("block_size", _MAX_BLOCK_SIZE),
            hash_function=fields.text("hash_function", 32),
            wrapped_fingerprint_key=fields.optional_raw("wrapped_fingerprint_key", _MAX_KEY),
            created_at=fields.time("created_at"),
        )
        made_at = fields.optional_time("key_made_at")
        index_number = fields.number("index_number") if "index_number" in fields else 0
    except ValueError as error:
        raise CatalogError(f"object {REPOSITORY_NAME} is damaged: {error}") from error
    if identity.uid != found.uid or identity.block_size < 1:
        raise CatalogError(f"object {REPOSITORY_NAME} is damaged: it holds another uid, or a block size of 0")
    return CatalogRepository(
        identity=identity,
        key_slots=found.key_slots,
        key_made_at=made_at,
        needs_release=found.needs_release,
        index_number=index_number,
    )


def _slot(fields: Fields) -> KeySlot:
    return KeySlot(
        label=fields.text("label", _LABEL_LENGTH),
        kdf=fields.text("kdf", 32),
        kdf_parameters=fields.text("kdf_parameters", _PARAMETERS_LENGTH),
        key_check=fields.raw("key_check", 16),
        wrapped_key=fields.raw("wrapped_key", _MAX_KEY),
        created_at=fields.time("created_at"),
    )
