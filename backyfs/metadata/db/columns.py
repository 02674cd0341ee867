"""Types of columns, which SQLite, PostgreSQL and MariaDB share, and which check what is read from them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Boolean, DateTime, Integer, LargeBinary, String
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeDecorator

from backyfs import values
from backyfs.errors import OddValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

    from backyfs.values import Rule


class Stored(TypeDecorator[Any]):
    """A column whose values keep a rule: whatever breaks it raises OddValueError when the row is read.

    SQLite stores any type in any column, and other engines any text that fits. The types of SQLAlchemy would let some
    of that pass, and turn some into something else: a blob read from the number 5 is five zeros.
    """

    impl = String
    cache_ok = True

    def __init__(self, kind: TypeEngine[Any], rule: Rule | None) -> None:
        """Store values as `kind` does. Without a rule they are read as they are, and whoever uses them checks them."""
        super().__init__()
        self.kind = kind
        self.rule = rule
        self.place = ("", "")  # table and column
        self.impl = kind  # type: ignore[assignment]  # of the class until now

    @property
    def python_type(self) -> type[Any]:
        """The type of its values."""
        return self.kind.python_type

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        """Return what makes a value of what the driver gives; NULL stays None, see `oddrows.sound_rows`."""
        if self.rule is None:
            return None
        check, convert, place = self.rule.check, self._convert, self.place

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                return check(convert(value))
            except ValueError as error:
                raise OddValueError(*place, str(error)) from None

        return process

    def _convert(self, value: Any) -> Any:
        """Return the value that a driver means; one that it cannot mean is returned as it is, for the rule."""
        return value


class Whole(Stored):
    """A whole number."""

    cache_ok = True

    def _convert(self, value: Any) -> Any:
        # PostgreSQL adds up large numbers as decimal ones.
        return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else value


class TrueOrFalse(Stored):
    """A bool. SQLite and MariaDB store 0 and 1."""

    cache_ok = True
    coerce_to_is_types = (type(None), bool)  # `IS false`, as with the types of SQLAlchemy

    def __init__(self) -> None:
        super().__init__(Boolean(), values.FLAG)

    def _convert(self, value: Any) -> Any:
        return bool(value) if type(value) is int and value in (0, 1) else value


class UtcDateTime(Stored):
    """An aware time in UTC; microseconds on every database."""

    cache_ok = True

    def __init__(self, rule: Rule = values.DATE) -> None:
        """Store times that keep a rule."""
        # MariaDB leaves out microseconds by default.
        super().__init__(DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"), rule)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store a time without its zone, in UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def _convert(self, value: Any) -> Any:
        if isinstance(value, str):  # as SQLite has it
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return value
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def uid(length: int, rule: Rule) -> Stored:
    """Make the type of a uid, compared by its bytes."""
    # Uids differ in case alone; MariaDB ignores case when it compares text unless the collation says otherwise.
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return Stored(String(length).with_variant(exact, "mysql", "mariadb"), rule)


def ordered(length: int) -> Stored:
    """Make the type of a key of short text: compared and ordered by its bytes, and read as it is."""
    # As a uid, and PostgreSQL orders it by its bytes as the others do.
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    ordered = postgresql.VARCHAR(length, collation="C")
    kind = String(length).with_variant(exact, "mysql", "mariadb").with_variant(ordered, "postgresql")
    return Stored(kind, None)


def raw(length: int, rule: Rule | None) -> Stored:
    """Make the type of short bytes."""
    # MariaDB indexes VARBINARY whole, but not BLOB.
    return Stored(LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb"), rule)


def text(length: int) -> Stored:
    """Make the type of text of people: names, labels, commands."""
    # Names are compared and ordered by their bytes everywhere, as SQLite does. PostgreSQL orders them by the
    # language of the database otherwise; MariaDB disregards case, and without "nopad" spaces at the end.
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin")
    ordered = postgresql.VARCHAR(length, collation="C")
    kind = String(length).with_variant(exact, "mysql", "mariadb").with_variant(ordered, "postgresql")
    return Stored(kind, values.Text(length))


def short(length: int, rule: Rule) -> Stored:
    """Make the type of text of the program."""
    return Stored(String(length), rule)


def number(rule: Rule | None) -> Stored:
    """Make the type of a number of 32 bits."""
    return Whole(Integer(), rule)


def large(rule: Rule | None) -> Stored:
    """Make the type of a number of 64 bits."""
    return Whole(BigInteger(), rule)


def reference() -> Stored:
    """Make the type of the id of a row of another table."""
    return Whole(BigInteger().with_variant(Integer, "sqlite"), values.ROW_ID)
