"""Convert records to JSON text and back, for the catalog and exports. Reading is strict and raises ValueError.

Times are ISO 8601 in UTC, and bytes are hexadecimal digits.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backyfs import values
from backyfs.model import KeySlot, StatisticsRecord, VersionRecord, VersionStatus, VersionUid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.values import Raw, Rule


def write_json(value: dict[str, Any]) -> bytes:
    """Return a dict of texts, numbers, times, bytes, and lists or dicts of these as one line of JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_text_of).encode()


def read_json(content: bytes) -> Fields:
    """Return the fields of a JSON object.

    Raises:
        ValueError: the content is not a JSON object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {error}") from error
    return Fields(value)


class Fields:
    """The fields of a JSON object. Each method raises ValueError if a field is missing or breaks its rule."""

    def __init__(self, value: Any) -> None:
        """Take a value that was parsed from JSON."""
        if not isinstance(value, dict):
            raise ValueError(f"{values.shown(value)} is not a JSON object")  # noqa: TRY004 - one error for all mistakes
        self._value = value

    def __contains__(self, name: str) -> bool:
        """Return whether a field exists."""
        return name in self._value

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of all fields."""
        return iter(self._value)

    def only(self) -> tuple[str, Any]:
        """Return the name and value of the only field."""
        if len(self._value) != 1:
            raise ValueError(f"it has {len(self._value)} fields instead of one")
        (field,) = self._value.items()
        return field

    def value(self, name: str, rule: Rule) -> Any:
        """Return a text, a number, or a bool."""
        return _checked(name, rule, self._get(name))

    def optional_value(self, name: str, rule: Rule) -> Any:
        """Return a text, a number, or a bool; None for null."""
        return None if self._get(name) is None else self.value(name, rule)

    def time(self, name: str, rule: Rule = values.DATE) -> datetime:
        """Return a time."""
        value = self._get(name)
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
        if time.tzinfo is None:
            raise ValueError(f"{name} is a time without a zone")
        return _checked(name, rule, time)  # type: ignore[no-any-return]

    def optional_time(self, name: str, rule: Rule = values.DATE) -> datetime | None:
        """Return a time; None for null."""
        return None if self._get(name) is None else self.time(name, rule)

    def raw(self, name: str, rule: Raw) -> bytes:
        """Return bytes, which are stored as hexadecimal digits."""
        return raw_bytes(name, rule, self._get(name))

    def optional_raw(self, name: str, rule: Raw) -> bytes | None:
        """Return bytes; None for null."""
        return None if self._get(name) is None else self.raw(name, rule)

    def texts(self, name: str, rule: Rule, most: int) -> tuple[str, ...]:
        """Return a list of at most `most` texts."""
        return tuple(_checked(name, rule, value) for value in self.list(name, most))

    def object(self, name: str) -> Fields:
        """Return a JSON object."""
        return Fields(self._get(name))

    def optional_object(self, name: str) -> Fields | None:
        """Return a JSON object; None for null."""
        return None if self._get(name) is None else self.object(name)

    def objects(self, name: str, most: int) -> tuple[Fields, ...]:
        """Return a list of at most `most` JSON objects."""
        return tuple(map(Fields, self.list(name, most)))

    def list(self, name: str, most: int) -> list[Any]:
        """Return a list of at most `most` values, which are not checked."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"{name} is not a list of up to {most}")
        return value

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise ValueError(f"it lacks {name}")
        return self._value[name]


def raw_bytes(name: str, rule: Raw, digits: Any) -> bytes:
    """Return the bytes that hexadecimal digits stand for.

    Raises:
        ValueError: these are not digits, or their bytes break the rule.
    """
    if not isinstance(digits, str) or len(digits) > 2 * rule.most:
        raise ValueError(f"{name} is {values.shown(digits)}, which is not up to {rule.most} bytes as digits")
    return _checked(name, rule, bytes.fromhex(digits))  # type: ignore[no-any-return]


def version_record(fields: Fields, most_tags: int) -> VersionRecord:
    """Return a version with at most `most_tags` tags, from the fields that `dataclasses.asdict` makes of one."""
    return VersionRecord(
        uid=VersionUid(fields.value("uid", values.VERSION_UID)),
        created_at=fields.time("created_at"),
        name=fields.value("name", values.NAME),
        snapshot_name=fields.value("snapshot_name", values.NAME),
        size_bytes=fields.value("size_bytes", values.SIZE),
        status=VersionStatus(fields.value("status", values.STATUS)),
        protected=fields.value("protected", values.FLAG),
        expire_at=fields.optional_time("expire_at", values.EXPIRY),
        tags=fields.texts("tags", values.NAME, most_tags),
    )


def statistics_record(fields: Fields) -> StatisticsRecord:
    """Return the statistics of a backup, from the fields that `dataclasses.asdict` makes of them."""
    return StatisticsRecord(
        created_at=fields.time("created_at"),
        version_uid=VersionUid(fields.value("version_uid", values.VERSION_UID)),
        version_name=fields.value("version_name", values.NAME),
        version_size_bytes=fields.value("version_size_bytes", values.COUNT),
        version_size_blocks=fields.value("version_size_blocks", values.COUNT),
        bytes_read=fields.value("bytes_read", values.COUNT),
        blocks_read=fields.value("blocks_read", values.COUNT),
        bytes_written=fields.value("bytes_written", values.COUNT),
        blocks_written=fields.value("blocks_written", values.COUNT),
        bytes_stored=fields.optional_value("bytes_stored", values.COUNT),
        bytes_deduplicated=fields.value("bytes_deduplicated", values.COUNT),
        blocks_deduplicated=fields.value("blocks_deduplicated", values.COUNT),
        bytes_sparse=fields.value("bytes_sparse", values.COUNT),
        blocks_sparse=fields.value("blocks_sparse", values.COUNT),
        duration_s=fields.value("duration_s", values.DURATION),
    )


def key_slot(fields: Fields) -> KeySlot:
    """Return a key slot, from the fields that `dataclasses.asdict` makes of one."""
    return KeySlot(
        label=fields.value("label", values.LABEL),
        kdf=fields.value("kdf", values.KDF),
        kdf_parameters=fields.value("kdf_parameters", values.KDF_PARAMETERS),
        key_check=fields.raw("key_check", values.KEY_CHECK),
        wrapped_key=fields.raw("wrapped_key", values.WRAPPED_KEY),
        created_at=fields.time("created_at"),
    )


def _checked(name: str, rule: Rule, value: Any) -> Any:
    try:
        return rule.check(value)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    assert isinstance(value, datetime), f"a {type(value).__name__} cannot be written"
    return value.astimezone(UTC).isoformat()
