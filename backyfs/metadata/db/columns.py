"""Column types for SQLite, PostgreSQL and MariaDB that check every value they read."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import VARBINARY, BigInteger, Boolean, DateTime, Integer, LargeBinary, String, Text
from sqlalchemy.types import TypeDecorator, UserDefinedType

from backyfs import values
from backyfs.errors import OddValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect
    from sqlalchemy.types import TypeEngine

    from backyfs.values import Rule


class MariadbType(UserDefinedType[Any]):
    """A type as MariaDB writes it.

    SQLAlchemy's classes for these types are in its dialects, and loading those of engines that are not used took a
    tenth of the time of a short command.
    """

    cache_ok = True

    def __init__(self, definition: str) -> None:
        """Take a type with this definition, as in CREATE TABLE."""
        self.definition = definition

    def get_col_spec(self, **_: Any) -> str:
        """Return the definition, for SQLAlchemy."""
        return self.definition


class CheckedType(TypeDecorator[Any]):
    """A column whose values obey a rule. Reading a value that breaks it raises OddValueError.

    SQLite stores any type in any column, and other engines any text that fits. SQLAlchemy's types accept some of these
    values and misread others: a blob read from the number 5 becomes five zero bytes.
    """

    impl = String
    cache_ok = True

    def __init__(self, kind: TypeEngine[Any], rule: Rule | None) -> None:
        """Store values as `kind` does. Without a rule, values are returned as stored, and callers must check them."""
        super().__init__()
        self.kind = kind
        self.rule = rule
        self.place = ("", "")  # table and column
        self.impl = kind  # type: ignore[assignment]  # replaces the class attribute

    @property
    def python_type(self) -> type[Any]:
        """The type of its values."""
        return self.kind.python_type

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:  # noqa: ARG002
        """Return a function that converts and checks values from the driver. NULL stays None (`oddrows.sound_rows`)."""
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
        """Convert a value from the driver. Return it unchanged if that is impossible; the rule will reject it."""
        return value


class WholeNumber(CheckedType):
    """A whole number."""

    cache_ok = True

    def _convert(self, value: Any) -> Any:
        # PostgreSQL returns sums of large numbers as Decimal.
        return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else value


class TrueOrFalse(CheckedType):
    """A bool. SQLite and MariaDB store 0 and 1."""

    cache_ok = True
    coerce_to_is_types = (type(None), bool)  # `IS false`, as for SQLAlchemy's own types

    def __init__(self) -> None:
        super().__init__(Boolean(), values.FLAG)

    def _convert(self, value: Any) -> Any:
        return bool(value) if type(value) is int and value in (0, 1) else value


class UtcDateTime(CheckedType):
    """An aware time in UTC, with microseconds on every database."""

    cache_ok = True

    def __init__(self, rule: Rule = values.DATE) -> None:
        """Store times that obey a rule."""
        # By default, MariaDB drops microseconds.
        super().__init__(DateTime().with_variant(MariadbType("DATETIME(6)"), "mysql", "mariadb"), rule)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store a time in UTC, without its zone."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def _convert(self, value: Any) -> Any:
        if isinstance(value, str):  # from SQLite
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                return value
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def uid(length: int, rule: Rule) -> CheckedType:
    """Return the type of a uid, compared by its bytes."""
    # Uids may differ only in case, which MariaDB ignores in comparisons unless the collation says otherwise.
    exact = String(length, collation="ascii_bin")
    return CheckedType(String(length).with_variant(exact, "mysql", "mariadb"), rule)


def ordered(length: int) -> CheckedType:
    """Return the type of a short text key: compared and ordered by its bytes, and returned unchecked."""
    # Like a uid, and PostgreSQL also orders it by its bytes, as the others do.
    exact = String(length, collation="ascii_bin")
    ordered = String(length, collation="C")
    kind = String(length).with_variant(exact, "mysql", "mariadb").with_variant(ordered, "postgresql")
    return CheckedType(kind, None)


def raw(length: int, rule: Rule | None) -> CheckedType:
    """Return the type of short bytes."""
    # MariaDB can index a whole VARBINARY, but not a whole BLOB.
    return CheckedType(LargeBinary(length).with_variant(VARBINARY(length), "mysql", "mariadb"), rule)


def text(length: int, rule: Rule | None = None) -> CheckedType:
    """Return the type of text that people chose: names, labels, commands."""
    # Names are compared and ordered by their bytes, as SQLite does. Otherwise PostgreSQL would order them by the
    # language of the database, and MariaDB would ignore case and, without "nopad", trailing spaces.
    exact = String(length, collation="utf8mb4_nopad_bin")
    ordered = String(length, collation="C")
    kind = String(length).with_variant(exact, "mysql", "mariadb").with_variant(ordered, "postgresql")
    return CheckedType(kind, values.Text(length) if rule is None else rule)


def short(length: int, rule: Rule) -> CheckedType:
    """Return the type of text that the program chose."""
    return CheckedType(String(length), rule)


def number(rule: Rule | None) -> CheckedType:
    """Return the type of a 32-bit number."""
    return WholeNumber(Integer(), rule)


def large(rule: Rule | None) -> CheckedType:
    """Return the type of a 64-bit number."""
    return WholeNumber(BigInteger(), rule)


def reference() -> CheckedType:
    """Return the type of a reference to a row of another table."""
    return WholeNumber(BigInteger().with_variant(Integer, "sqlite"), values.ROW_ID)


def json_text(rule: Rule) -> CheckedType:
    """Return the type of JSON of up to 64 KiB."""
    # TEXT of MariaDB holds one byte less than 64 KiB.
    long = MariadbType("MEDIUMTEXT COLLATE utf8mb4_nopad_bin")
    return CheckedType(Text().with_variant(long, "mysql", "mariadb"), rule)
