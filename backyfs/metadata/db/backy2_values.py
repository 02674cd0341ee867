"""Convert values from backy2's columns. SQLite stores any type in any column, whatever the declaration says.

Each function accepts None, integers, floats, text and bytes, and never raises TypeError.
"""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from backyfs import values
from backyfs.errors import DatabaseError
from backyfs.model import NAME_LENGTH
from backyfs.values import obeys

if TYPE_CHECKING:
    from backyfs.values import Rule

_LARGEST = (1 << 63) - 1
_GREGORIAN_EPOCH = datetime(1582, 10, 15, tzinfo=UTC)  # of the times in uids, RFC 4122
_ZONE_STEP = timedelta(minutes=15)
_ZONE_LIMIT = timedelta(hours=14)
_NEAR = timedelta(minutes=2)  # between making the uid and inserting the row


def text_of(value: object) -> str:
    """Return the value as text; bytes that are not UTF-8 become backslash escapes."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return "" if value is None else str(value)


def name_of(value: object) -> str:
    """Return the value as a name that every database can store."""
    return text_of(value).replace("\0", "")[:NAME_LENGTH]


def valid_or(rule: Rule, value: object, otherwise: Any) -> Any:
    """Return the value if it obeys the rule, else `otherwise`."""
    return value if obeys(rule, value) else otherwise


def number_of(value: object) -> int | None:
    """Return a 64-bit integer, also from digits or a whole float; None if the value is not one."""
    try:
        number = int(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    if number is None or abs(number) > _LARGEST or (isinstance(value, float) and value != number):
        return None
    return number


def digits_of(value: object) -> bytes | None:
    """Return the bytes for a text of hexadecimal digits; None for any other value."""
    if not isinstance(value, str) or not value:
        return None
    try:
        return bytes.fromhex(value) or None
    except ValueError:
        return None


def unix_time_of(value: object) -> datetime:
    """Return the time for a number of seconds since 1970; the start of 1970 if the value is not one."""
    try:
        time: datetime = values.DATE.check(datetime.fromtimestamp(number_of(value) or 0, UTC))
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
    return time


def parse_time(value: object) -> datetime | None:
    """Return a date or time as an aware time; None for an empty value.

    Raises:
        DatabaseError: the value is neither a date nor a time.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise DatabaseError(f"{value!r} is not a time") from None
    if isinstance(value, datetime):
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:
            raise DatabaseError(f"{value} is not a time") from None
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise DatabaseError(f"{value!r} is not a time")


def created_at_of(uid: str, found: datetime | None) -> datetime:
    """Return the creation time of a version in UTC. An impossible one counts as missing.

    Before backy2 2.10.6, databases other than SQLite stored it in their own time zone. The uid is a UUID of version 1,
    which contains its time in UTC: if the two differ by a time zone, the uid is right.
    """
    made: datetime | None = valid_or(values.DATE, _time_of(uid), None)
    found = valid_or(values.DATE, found, None)
    if found is None:
        return made or datetime.fromtimestamp(0, UTC)
    if made is None:
        return found
    steps = round((found - made) / _ZONE_STEP)
    zone = steps * _ZONE_STEP
    if steps and abs(zone) <= _ZONE_LIMIT and abs(found - made - zone) <= _NEAR:
        return found - zone
    return found


def _time_of(uid: str) -> datetime | None:
    try:
        parsed = uuid.UUID(uid)
    except ValueError:
        return None
    return _GREGORIAN_EPOCH + timedelta(microseconds=parsed.time // 10) if parsed.version == 1 else None
