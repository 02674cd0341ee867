"""Find blobs by fingerprint, insert new ones, and load them by id or uid."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import bindparam, func, insert, literal_column, select

from backyfs.errors import IntegrityError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.oddrows import require_sound, sound_rows
from backyfs.metadata.db.tables import blob_refs, blobs
from backyfs.model import Blob, BlobId, BlobRecord, BlobUid, SavedBlob
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import datetime

    from backyfs.metadata.db.database import Connection

_Facts = TypeVar("_Facts", Blob, BlobRecord)

_ROWS_AT_ONCE = 20_000

# Built once: building the statement for each call took longer than running it.
_FIND = (
    select(blobs.c.fingerprint, blobs.c.id)
    .where(
        blobs.c.fingerprint.in_(bindparam("fingerprints", expanding=True)),
        blobs.c.valid,
        blobs.c.doomed_at.is_(None),
    )
    .order_by(blobs.c.id.desc())  # the oldest one comes last and wins
)
_FIND_OF_VERSION = _FIND.where(blobs.c.encryption_version == bindparam("version"))


_ALL_FACTS = select(
    blobs.c.id,
    blobs.c.uid,
    blobs.c.fingerprint,
    blobs.c.size,
    blobs.c.stored_size,
    blobs.c.encryption_version,
    blobs.c.wrapped_key,
    blobs.c.valid,
    blobs.c.doomed_at,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBlob:
    """A row of `blobs`."""

    id: BlobId
    doomed: bool  # a cleanup is about to delete it
    facts: BlobRecord


def find_blobs(
    connection: Connection, fingerprints: Iterable[bytes], *, encryption_version: int | None = None
) -> dict[bytes, BlobId]:
    """Return the valid, not doomed blobs with these fingerprints, of one encryption version or of any.

    If several blobs have the same fingerprint, the oldest one is returned, so that equal images get equal pages.
    """
    found: dict[bytes, BlobId] = {}
    for batch in batches(fingerprints):
        if encryption_version is None:
            rows = connection.execute(_FIND, {"fingerprints": batch})
        else:
            rows = connection.execute(_FIND_OF_VERSION, {"fingerprints": batch, "version": encryption_version})
        found.update((row.fingerprint, BlobId(row.id)) for row in rows)
    return found


def insert_blobs(
    connection: Connection, saved: Iterable[SavedBlob | BlobRecord], created_at: datetime
) -> dict[BlobUid, BlobId]:
    """Insert blobs that are durable in the storage and that no page refers to yet. Return their ids."""
    ids: dict[BlobUid, BlobId] = {}
    for batch in batches(saved):
        rows = [_values(blob) | {"created_at": created_at} for blob in batch]
        inserted = connection.execute(insert(blobs).returning(blobs.c.uid, blobs.c.id), rows)
        ids.update((BlobUid(row.uid), BlobId(row.id)) for row in inserted)
    _begin_counting(connection, ids.values())
    return ids


def insert_numbered_blobs(
    connection: Connection, records: Iterable[tuple[BlobId, BlobRecord]], created_at: datetime
) -> None:
    """Insert blobs with the caller's ids, which takes half the time. No other command may insert blobs.

    The caller must call `continue_ids` afterwards.
    """
    at = created_at.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    row = insert(blobs).values(created_at=literal_column(f"'{at}'"))  # converted once, not for each row
    for batch in batches(records):
        connection.execute(row, [_values(blob) | {"id": blob_id} for blob_id, blob in batch])
        _begin_counting(connection, (blob_id for blob_id, _ in batch))


def find_by_uid(connection: Connection, uids: Iterable[BlobUid]) -> dict[BlobUid, KnownBlob]:
    """Return the rows of these blobs by uid, including doomed ones. Missing rows are skipped.

    Raises:
        OddValueError: a row has an impossible value.
    """
    return _find_by_uid(connection, uids, require_sound)


def find_sound_by_uid(connection: Connection, uids: Iterable[BlobUid]) -> dict[BlobUid, KnownBlob]:
    """Return the rows of these blobs by uid, including doomed ones; note and skip damaged rows."""
    return _find_by_uid(connection, uids, sound_rows)


def _find_by_uid(
    connection: Connection, uids: Iterable[BlobUid], read: Callable[[Connection, Any, Any], list[Any]]
) -> dict[BlobUid, KnownBlob]:
    found: dict[BlobUid, KnownBlob] = {}
    for batch in batches(uids):
        for row in read(connection, _ALL_FACTS.where(blobs.c.uid.in_(batch)), blobs.c.id):
            known = KnownBlob(id=BlobId(row.id), doomed=row.doomed_at is not None, facts=_facts(row))
            found[known.facts.uid] = known
    return found


def contradict(known: bytes | None, other: bytes | None) -> bool:
    """Return whether fingerprints are of different bytes; different hash functions cannot contradict each other."""
    return known is not None and other is not None and len(known) == len(other) and known != other


def damaged_blobs(connection: Connection) -> frozenset[BlobId]:
    """Return the blobs that were found damaged."""
    return frozenset(connection.execute(select(blobs.c.id).where(blobs.c.valid.is_(False))).scalars())


def newest_wrapped_key(connection: Connection) -> bytes | None:
    """Return the wrapped data key of the newest blob that has one; None if there is no such blob."""
    query = select(blobs.c.wrapped_key).where(blobs.c.wrapped_key.is_not(None)).order_by(blobs.c.id.desc()).limit(1)
    return connection.execute(query).scalar()


def sample_blob_uids(connection: Connection, count: int) -> list[BlobUid]:
    """Return the uids of up to `count` blobs, evenly spread, whose objects should be in the storage."""
    lowest, highest = connection.execute(select(func.min(blobs.c.id), func.max(blobs.c.id))).one()
    if lowest is None:
        return []
    found: dict[BlobUid, None] = {}
    for position in range(count):
        at_least = lowest + (highest - lowest) * position // max(1, count - 1)
        is_wanted = (blobs.c.id >= at_least) & blobs.c.doomed_at.is_(None)
        uid = connection.execute(select(blobs.c.uid).where(is_wanted).order_by(blobs.c.id).limit(1)).scalar()
        if uid is not None:
            found[BlobUid(uid)] = None
    return list(found)


def load_blob_records(connection: Connection, ids: Iterable[BlobId]) -> dict[BlobId, BlobRecord]:
    """Return the records of the blobs with these ids. Missing rows are skipped; odd ones are noted and skipped."""
    found: dict[BlobId, BlobRecord] = {}
    for batch in batches(ids):
        for row in sound_rows(connection, _ALL_FACTS.where(blobs.c.id.in_(batch)), blobs.c.id):
            found[BlobId(row.id)] = _facts(row)
    return found


def load_blobs(connection: Connection, ids: Iterable[BlobId]) -> dict[BlobId, Blob]:
    """Return the blobs with these ids. Missing rows are skipped; odd ones are noted and skipped."""
    found: dict[BlobId, Blob] = {}
    for batch in batches(ids):
        query = select(
            blobs.c.id,
            blobs.c.uid,
            blobs.c.fingerprint,
            blobs.c.size,
            blobs.c.encryption_version,
            blobs.c.wrapped_key,
            blobs.c.stored_size,
        ).where(blobs.c.id.in_(batch))
        for row in sound_rows(connection, query, blobs.c.id):
            found[BlobId(row.id)] = Blob(
                id=BlobId(row.id),
                uid=BlobUid(row.uid),
                fingerprint=row.fingerprint,
                size=row.size,
                encryption_version=row.encryption_version,
                wrapped_key=row.wrapped_key,
                stored_size=row.stored_size,
            )
    return found


def find_moved(connection: Connection, blob: Blob) -> Blob | None:
    """Return the blob that has the bytes of `blob` now; None if no other place is known.

    The blob was re-sealed, or it was replaced by a blob with the same bytes and a cleanup is about to delete it.
    """
    row = connection.execute(select(blobs.c.uid, blobs.c.doomed_at).where(blobs.c.id == blob.id)).one_or_none()
    if row is not None and row.doomed_at is None:
        return None if row.uid == blob.uid else load_blobs(connection, [blob.id]).get(blob.id)
    if blob.fingerprint is None:
        return None
    other = find_blobs(connection, [blob.fingerprint]).get(blob.fingerprint)
    return None if other is None else load_blobs(connection, [other]).get(other)


def require_blobs(connection: Connection, ids: Collection[BlobId]) -> dict[BlobId, Blob]:
    """Return the blobs with these ids.

    Raises:
        IntegrityError: the row of one is missing or damaged.
    """
    return _require_all(ids, load_blobs(connection, ids))


def require_blob_records(connection: Connection, ids: Collection[BlobId]) -> dict[BlobId, BlobRecord]:
    """Return the records of the blobs with these ids.

    Raises:
        IntegrityError: the row of one is missing or damaged.
    """
    return _require_all(ids, load_blob_records(connection, ids))


def known_uids(connection: Connection, uids: Iterable[BlobUid]) -> set[BlobUid]:
    """Return the uids that have a row, even if the rest of the row is damaged."""
    found: set[BlobUid] = set()
    for batch in batches(uids):
        found.update(connection.execute(select(blobs.c.uid).where(blobs.c.uid.in_(batch))).scalars())
    return found


def require_sound_uids(connection: Connection) -> None:
    """Make sure that no uid is impossible: the object of a row with a damaged uid would look like an orphan.

    Raises:
        OddValueError: a uid is impossible.
    """
    query = select(blobs.c.id, blobs.c.uid).order_by(blobs.c.id).limit(_ROWS_AT_ONCE)
    last = None
    while rows := require_sound(connection, query if last is None else query.where(blobs.c.id > last), blobs.c.id):
        last = rows[-1].id


def _require_all(ids: Iterable[BlobId], found: dict[BlobId, _Facts]) -> dict[BlobId, _Facts]:
    missing = next((blob_id for blob_id in ids if blob_id not in found), None)
    if missing is not None:
        raise IntegrityError(
            f"refers to blob number {missing}, whose row in the database is missing or damaged",
            subject="a block map",
            remedy=Advice.SCRUB_OR_RECOVER(),
        )
    return found


def _begin_counting(connection: Connection, ids: Iterable[BlobId]) -> None:
    for batch in batches(ids):
        connection.execute(insert(blob_refs), [{"blob_id": blob_id, "refs": 0} for blob_id in batch])


def _values(blob: SavedBlob | BlobRecord) -> dict[str, Any]:
    return {
        "uid": blob.uid,
        "fingerprint": blob.fingerprint,
        "size": blob.size,
        "stored_size": blob.stored_size,
        "encryption_version": blob.encryption_version,
        "wrapped_key": blob.wrapped_key,
        "valid": isinstance(blob, SavedBlob) or blob.valid,
    }


def _facts(row: Any) -> BlobRecord:
    return BlobRecord(
        uid=BlobUid(row.uid),
        fingerprint=row.fingerprint,
        size=row.size,
        stored_size=row.stored_size,
        encryption_version=row.encryption_version,
        wrapped_key=row.wrapped_key,
        valid=row.valid,
    )
