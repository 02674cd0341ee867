"""Rules for values that are read from database rows, objects of the catalog and exports.

Pure. Stored values are not trusted, because anyone who can write to the database or the storage can put anything
there. Each kind of value has one rule, applied wherever such values are read: by the columns of the database, the
objects of `catalog`, and both formats that `import` reads.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from backyfs.model import NAME_LENGTH, RunOutcome, Unit, VersionStatus

if TYPE_CHECKING:
    from enum import StrEnum

_SHOWN = 60  # characters of a value in a message


class Rule(Protocol):
    """A rule for one kind of value."""

    def check(self, value: Any) -> Any:
        """Return the value if it obeys the rule.

        Raises:
            ValueError: it does not; the text says what was expected.
        """
        ...


def shown(value: object) -> str:
    """Return a value for a message: printable, and cut to a bounded length."""
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:  # Python refuses to print very long numbers
        return f"a number of {value.bit_length()} bits"
    text = repr(value[: _SHOWN + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def obeys(rule: Rule, value: object) -> bool:
    """Return whether a value obeys a rule."""
    try:
        rule.check(value)
    except ValueError:
        return False
    return True


def _wrong(value: object, expected: str) -> ValueError:
    return ValueError(f"{shown(value)}, which is not {expected}")


@dataclass(frozen=True, slots=True)
class Text:
    """Text of bounded length that every database can store. `form` must match the whole text."""

    most: int
    form: re.Pattern[str] | None = None
    kind: str = "text"

    def check(self, value: Any) -> str:
        """Return the text if it obeys the rule."""
        if isinstance(value, str) and len(value) <= self.most and "\0" not in value and self._has_form(value):
            return value
        of = "" if self.form is None else f" of the form {self.form.pattern}"
        raise _wrong(value, f"{self.kind} of up to {self.most} characters{of}")

    def _has_form(self, value: str) -> bool:
        if self.form is not None:
            return self.form.fullmatch(value) is not None
        return value.isascii() or not _SURROGATE.search(value)


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number in [least, below)."""

    least: int
    below: int

    def check(self, value: Any) -> int:
        """Return the number if it obeys the rule. A bool is not a number."""
        if type(value) is int and self.least <= value < self.below:
            return value
        raise _wrong(value, f"a number from {self.least} to {self.below - 1}")


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration."""

    def check(self, value: Any) -> float:
        """Return the duration if it obeys the rule."""
        if type(value) in (int, float) and 0 <= value < _MOST_SECONDS:  # a NaN is not
            return float(value)
        raise _wrong(value, "a duration in seconds")


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: Any) -> bool:
        """Return the value if it is a bool."""
        if isinstance(value, bool):
            return value
        raise _wrong(value, "true or false")


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes of bounded length."""

    least: int
    most: int

    def check(self, value: Any) -> bytes:
        """Return the bytes if they obey the rule."""
        if isinstance(value, bytes) and self.least <= len(value) <= self.most:
            return value
        length = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        raise _wrong(value, f"{length} bytes")


@dataclass(frozen=True, slots=True)
class Moment:
    """An aware time in the years [first, below)."""

    first: int
    below: int

    def check(self, value: Any) -> datetime:
        """Return the time in UTC if it obeys the rule."""
        if isinstance(value, datetime) and value.tzinfo is not None:
            try:
                found: datetime = value.astimezone(UTC)
            except OverflowError:
                raise _wrong(value, "a time") from None
            if self.first <= found.year < self.below:
                return found
        raise _wrong(value, f"a time in the years {self.first} to {self.below - 1}")


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values of an enumeration."""

    kind: type[StrEnum]

    def check(self, value: Any) -> str:
        """Return the text if it is one of the values."""
        if isinstance(value, str) and any(value == one.value for one in self.kind):
            return value
        raise _wrong(value, f"one of {', '.join(one.value for one in self.kind)}")


@dataclass(frozen=True, slots=True)
class Json:
    """JSON text of bounded length; with `names`, a list of texts."""

    most: int
    names: bool = False

    def check(self, value: Any) -> str:
        """Return text that keeps the rule."""
        if isinstance(value, str) and len(value) <= self.most and self._is_json(value):
            return value
        raise _wrong(value, f"JSON of up to {self.most} characters{', a list of names' if self.names else ''}")

    def _is_json(self, value: str) -> bool:
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return False
        return not self.names or (isinstance(found, list) and all(isinstance(name, str) for name in found))


_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can contain them, but they are not characters
_MOST_SECONDS = 1e15
_MOST_COUNT = 1 << 63

VERSION_UID = Text(36, re.compile("[0-9A-Za-z-]+"), "a uid")  # used as the name of a directory and a catalog object
REPOSITORY_UID = VERSION_UID
PAGE_UID = Text(36, re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "the uid of a page")  # 16 bytes
BLOB_UID = Text(32, re.compile("[0-9A-Za-z]{5,}"), "the uid of a block")  # becomes a path
NAME = Text(NAME_LENGTH)  # of a version, a snapshot, a tag
LABEL = Text(255)         # of a key slot
HASH_FUNCTION = Text(32)
RELEASE = Text(32)
KDF = Text(32)
KDF_PARAMETERS = Text(1024)
STATUS = Choice(VersionStatus)
SIZE = Number(0, _MOST_COUNT)            # bytes of an image or object
COUNT = Number(0, _MOST_COUNT)
TOKEN = COUNT
ROW_ID = Number(1, _MOST_COUNT)
PID = Number(1, 1 << 31)
EXIT_STATUS = Number(0, 256)
UNIT = Choice(Unit)                      # of the progress of a job
OUTCOME = Choice(RunOutcome)             # of a run
NAMES = Json(4096, names=True)           # of backups, of a job
REPORT = Json(64 << 10)                  # of a run
BLOCK_SIZE = Number(1, 1 << 31)
BLOB_SIZE = Number(0, 1 << 31)           # plain bytes; 0 if backy2 did not know it
ENCRYPTION_VERSION = Number(0, 1 << 15)
PAGE_NUMBER = Number(0, 1 << 31)
FLAG = Flag()
DURATION = Seconds()
FINGERPRINT = Raw(0, 64)
WRAPPED_KEY = Raw(0, 64)                 # empty if it was empty in backy2
FINGERPRINT_KEY = Raw(0, 64)
IDENTITY_TAG = Raw(32, 32)
KEY_CHECK = Raw(0, 16)
DATE = Moment(1, 9000)                   # when something happened; years can be added to it
EXPIRY = Moment(1, 10_000)               # may mean "never" or "immediately"
