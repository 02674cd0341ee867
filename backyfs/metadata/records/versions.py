"""Create, change and list versions, and find the one that a person names."""

from __future__ import annotations

import re
import uuid
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, literal_column, select, text, update

from backyfs.errors import VersionNotFoundError
from backyfs.metadata.catalog.notes import note_listing, note_version
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.database import insert_row
from backyfs.metadata.db.oddrows import require_sound, sound_rows
from backyfs.metadata.db.tables import blobs, tags, versions
from backyfs.model import CLOCK_TOLERANCE, Version, VersionId, VersionRecord, VersionStatus, VersionUid
from backyfs.moments import time_text
from backyfs.remedies import Advice, Remedy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy import ColumnElement, Connection, Row, Select

_LATEST = "latest"
_MIN_PREFIX = 4  # fewer digits of a uid are too ambiguous
_UID_PREFIX = re.compile(rf"[0-9a-fA-F-]{{{_MIN_PREFIX},36}}")
_SHOWN_UIDS = 5


def create_version(
    connection: Connection,
    *,
    name: str,
    snapshot_name: str,
    size_bytes: int,
    created_at: datetime,
    tag_names: Iterable[str] = (),
    expire_at: datetime | None = None,
) -> Version:
    """Insert and return an incomplete version for a new backup."""
    record = VersionRecord(
        uid=VersionUid(str(uuid.uuid4())),
        created_at=created_at,
        name=name,
        snapshot_name=snapshot_name,
        size_bytes=size_bytes,
        status=VersionStatus.INCOMPLETE,
        protected=False,
        expire_at=expire_at,
        tags=tuple(sorted(set(tag_names))),
    )
    return insert_version(connection, record)


def insert_version(connection: Connection, record: VersionRecord) -> Version:
    """Insert and return a version without blocks."""
    values = {field.name: getattr(record, field.name) for field in fields(VersionRecord)}
    names = values.pop("tags")
    row = insert(versions).values({**values, "status": record.status.value})
    version_id = VersionId(insert_row(connection, row))
    if names:
        connection.execute(insert(tags), [{"version_id": version_id, "name": tag} for tag in names])
    note_listing(connection, version_id)
    return Version(id=version_id, **values, tags=names)


def set_status(connection: Connection, version_id: VersionId, status: VersionStatus) -> None:
    """Change the status of a version."""
    connection.execute(update(versions).where(versions.c.id == version_id).values(status=status.value))
    note_version(connection, version_id)


def set_expiry(connection: Connection, version_id: VersionId, expire_at: datetime | None) -> None:
    """Change when a version expires; None means never."""
    connection.execute(update(versions).where(versions.c.id == version_id).values(expire_at=expire_at))
    note_version(connection, version_id)


def set_protected(connection: Connection, version_id: VersionId, *, protected: bool) -> bool:
    """Protect or unprotect a version; return False if that changed nothing."""
    # Compared in the condition: depending on the driver, MariaDB counts matching rows or changed rows.
    here = (versions.c.id == version_id) & (versions.c.protected.is_not(protected))
    note_version(connection, version_id)
    return connection.execute(update(versions).where(here).values(protected=protected)).rowcount == 1


def remove_tags(connection: Connection, version_id: VersionId, names: Iterable[str]) -> None:
    """Remove tags from a version, ignoring white space around its own tags. Tags that it does not have are ignored."""
    wanted = set(names)
    has = connection.execute(select(tags.c.name).where(tags.c.version_id == version_id)).scalars().all()
    for batch in batches(name for name in has if name in wanted or name.strip() in wanted):
        connection.execute(delete(tags).where(tags.c.version_id == version_id, tags.c.name.in_(batch)))
    note_version(connection, version_id)


def add_tags(connection: Connection, version_id: VersionId, names: Iterable[str]) -> list[str]:
    """Add tags to a version; return those that are new."""
    has = set(connection.execute(select(tags.c.name).where(tags.c.version_id == version_id)).scalars())
    new = sorted(set(names) - has)
    if new:
        connection.execute(insert(tags), [{"version_id": version_id, "name": name} for name in new])
        note_version(connection, version_id)
    return new


def list_versions(connection: Connection, *, name: str | None = None) -> list[Version]:
    """Return all versions, or those of one name, ordered by name and date, with two queries.

    Damaged rows of versions and tags are skipped and noted, see `oddrows`.
    """
    query = select(versions).order_by(versions.c.name, versions.c.created_at, versions.c.id)
    tag_query = select(tags.c.version_id, tags.c.name).order_by(tags.c.name)
    if name is not None:
        query = query.where(versions.c.name == name)
        tag_query = tag_query.join(versions).where(versions.c.name == name)
    names: dict[int, list[str]] = {}
    for row in sound_rows(connection, tag_query, tags.c.id):
        names.setdefault(row.version_id, []).append(row.name)
    return [_version(row, names.get(row.id, ())) for row in sound_rows(connection, query, versions.c.id)]


def listing_state(connection: Connection) -> object:
    """Return a value that equals an earlier one if the result of `list_versions` has not changed since.

    For 10,000 versions this takes a quarter of the time, because no values are converted.
    """
    rows = []
    for table in (versions, tags):
        everything: Select[tuple[object, ...]] = select(literal_column(f"{table.name}.*")).select_from(table)
        rows.append(connection.execute(everything.order_by(text("1, 2"))).all())
    return rows


def has_contents(connection: Connection) -> bool:
    """Return whether there are any versions or blobs."""
    return any(connection.execute(select(table.c.id).limit(1)).first() is not None for table in (versions, blobs))


def is_last_valid(connection: Connection, version: Version, gone: Collection[VersionId] = ()) -> bool:
    """Return whether a version is valid and no other valid version has its name, ignoring those that are `gone`."""
    if version.status is not VersionStatus.VALID:
        return False
    others = (other for other in list_versions(connection, name=version.name) if other.id != version.id)
    return all(other.id in gone or other.status is not VersionStatus.VALID for other in others)


def version_with_uid(connection: Connection, uid: VersionUid) -> Version | None:
    """Return the version with exactly this uid; None if there is none."""
    return next(iter(_query(connection, versions.c.uid == uid, limit=1)), None)


def find_version(connection: Connection, wanted: str, *, now: datetime | None = None) -> Version:
    """Return the version that a person names.

    `wanted` is a uid, its first 4 or more digits, `NAME@latest`, or `NAME@YYYY-MM-DD[THH:MM[:SS]]`. The last two find
    the newest valid version: not dated after `now` (by default the clock of this host), or at or before that time in
    UTC, where a date includes its whole day.

    Raises:
        VersionNotFoundError: no version, or more than one, matches.
    """
    name, separator, moment = wanted.rpartition("@")
    if separator:
        return _find_by_name(connection, name, moment, wanted, now or datetime.now(UTC))
    if not _UID_PREFIX.fullmatch(wanted):
        forms = f"give a uid, {_MIN_PREFIX} or more digits of one, NAME@latest or NAME@YYYY-MM-DD"
        raise VersionNotFoundError(
            "does not name a version", subject=repr(wanted), remedy=Remedy(forms).then(Advice.LIST_VERSIONS())
        )
    found = list(_query(connection, func.lower(versions.c.uid).like(f"{wanted.lower()}%"), limit=_SHOWN_UIDS))
    exact = [version for version in found if version.uid.lower() == wanted.lower()]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise VersionNotFoundError(f"no version has a uid that begins with {wanted}", remedy=Advice.LIST_VERSIONS())
    uids = ", ".join(version.uid for version in found)
    raise VersionNotFoundError(f"is the beginning of several uids ({uids})", subject=wanted, remedy="give more digits")


def _find_by_name(connection: Connection, name: str, moment: str, wanted: str, now: datetime) -> Version:
    is_latest = moment == _LATEST
    before = now + CLOCK_TOLERANCE if is_latest else _end_of_moment(moment, wanted)
    of_name = versions.c.name == name
    is_valid = versions.c.status == VersionStatus.VALID.value
    in_time = versions.c.created_at <= before if is_latest else versions.c.created_at < before
    for version in _query(connection, of_name & is_valid & in_time, limit=1):
        return version
    if not connection.execute(select(func.count()).where(of_name)).scalar_one():
        raise VersionNotFoundError(f"no version is named {name!r}", remedy=Advice.LIST_VERSIONS())
    if is_latest:
        for version in _query(connection, of_name & is_valid, limit=1):
            raise VersionNotFoundError(
                f"all valid versions of {name!r} are dated in the future, the newest one, {version.uid}, at "
                f"{time_text(version.created_at)} UTC",
                remedy="check the clock of this host, or give a uid",
            )
    when = "" if is_latest else f" at or before {moment} UTC"
    for status, explain in ((VersionStatus.INVALID, _damaged), (VersionStatus.INCOMPLETE, _interrupted)):
        for version in _query(connection, of_name & in_time & (versions.c.status == status.value), limit=1):
            fact, remedy = explain(connection, version)
            raise VersionNotFoundError(f"has no valid version{when}; {fact}", subject=repr(name), remedy=remedy)
    raise VersionNotFoundError(f"has no valid version{when}", subject=repr(name), remedy=Advice.LIST_VERSIONS())


def _damaged(connection: Connection, version: Version) -> tuple[str, Remedy]:
    from backyfs.metadata.maps.damage import measure_damage  # noqa: PLC0415 - few commands need block maps

    damage = measure_damage(connection, version)
    fact = (
        f"the newest damaged one is {version.uid} of {time_text(version.created_at)} UTC, with {damage.bad_blocks} of "
        f"{damage.blocks} blocks known to be bad"
    )
    return fact, Advice.READ_DAMAGED_VERSION(uid=version.uid)


def _interrupted(_connection: Connection, version: Version) -> tuple[str, Remedy]:
    fact = f"the backup of the newest one, {version.uid} of {time_text(version.created_at)} UTC, was interrupted"
    return fact, Advice.CONTINUE_VERSION(uid=version.uid)


def _end_of_moment(moment: str, wanted: str) -> datetime:
    """Return the end of `moment`: of the day, minute or second that it names."""
    for form, step in (
        ("%Y-%m-%d", timedelta(days=1)),
        ("%Y-%m-%dT%H:%M", timedelta(minutes=1)),
        ("%Y-%m-%dT%H:%M:%S", timedelta(seconds=1)),
    ):
        try:
            return datetime.strptime(moment, form).replace(tzinfo=UTC) + step
        except (ValueError, OverflowError):
            continue
    raise VersionNotFoundError(
        "does not name a version",
        subject=repr(wanted),
        remedy="write `latest` or a time in UTC after the @, as YYYY-MM-DD or YYYY-MM-DDTHH:MM",
    )


def _query(connection: Connection, condition: ColumnElement[bool], *, limit: int) -> Iterable[Version]:
    query = (
        select(versions)
        .where(condition)
        .order_by(versions.c.created_at.desc(), versions.c.id.desc())
        .limit(limit)
    )
    for row in require_sound(connection, query, versions.c.id):
        named = select(tags.c.name).where(tags.c.version_id == row.id).order_by(tags.c.name)
        yield _version(row, [tag.name for tag in sound_rows(connection, named, tags.c.id)])


def _version(row: Row[tuple[object, ...]], names: Iterable[str]) -> Version:
    return Version(
        id=VersionId(row.id),
        uid=VersionUid(row.uid),
        created_at=row.created_at,
        name=row.name,
        snapshot_name=row.snapshot_name,
        size_bytes=row.size_bytes,
        status=VersionStatus(row.status),
        protected=row.protected,
        expire_at=row.expire_at,
        tags=tuple(names),
    )
