"""Facts as JSON and back: strict, each value of the kind that is expected, or ValueError."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

_MAX_NUMBER = 1 << 63


def write_json(value: dict[str, Any]) -> bytes:
    """Return a dict with texts, numbers, times, bytes and lists of them as JSON."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(field) for name, field in value.items()}
        case tuple() | list():
            return [_plain(field) for field in value]
        case datetime():
            return value.astimezone(UTC).isoformat()
        case bytes():
            return value.hex()
    return value


def read_json(content: bytes) -> Fields:
    """Return the fields of a JSON object.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    return Fields(value)


class Fields:
    """The fields of a JSON object; each method raises ValueError where one is missing or of another kind."""

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise ValueError("it has something else than a JSON object")  # noqa: TRY004 - one error for all mistakes
        self._value = value

    def __contains__(self, name: str) -> bool:
        """Tell whether there is such a field."""
        return name in self._value

    def text(self, name: str, max_length: int) -> str:
        """Return a text of at most so many characters, all of them such as databases take."""
        value = self._get(name)
        if not isinstance(value, str) or len(value) > max_length or "\0" in value:
            raise ValueError(f"{name} is no text of up to {max_length} characters")
        value.encode()  # JSON can name characters that are none: UnicodeEncodeError is a ValueError
        return value

    def number(self, name: str, below: int = _MAX_NUMBER) -> int:
        """Return a number from 0 on."""
        value = self._get(name)
        if type(value) is not int or not 0 <= value < below:
            raise ValueError(f"{name} is no number below {below}")
        return value

    def optional_number(self, name: str) -> int | None:
        """Return a number, or None."""
        return None if self._get(name) is None else self.number(name)

    def seconds(self, name: str) -> float:
        """Return a duration."""
        value = self._get(name)
        if type(value) not in (int, float) or not 0 <= value < 1e15:
            raise ValueError(f"{name} is no duration")
        return float(value)

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            raise ValueError(f"{name} is neither true nor false")  # noqa: TRY004
        return value

    def time(self, name: str) -> datetime:
        """Return a time."""
        value = self._get(name)
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
        if time.tzinfo is None:
            raise ValueError(f"{name} is a time of no zone")
        try:
            return time.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(f"{name} is no time") from error

    def optional_time(self, name: str) -> datetime | None:
        """Return a time, or None."""
        return None if self._get(name) is None else self.time(name)

    def raw(self, name: str, max_bytes: int) -> bytes:
        """Return bytes that stand as hexadecimal digits."""
        return bytes.fromhex(self.text(name, 2 * max_bytes))

    def optional_raw(self, name: str, max_bytes: int) -> bytes | None:
        """Return bytes, or None."""
        return None if self._get(name) is None else self.raw(name, max_bytes)

    def texts(self, name: str, max_length: int, most: int) -> tuple[str, ...]:
        """Return a list of texts, `most` of them or fewer."""
        return tuple(Fields({"": value}).text("", max_length) for value in self._list(name, most))

    def objects(self, name: str, most: int) -> tuple[Fields, ...]:
        """Return a list of JSON objects, `most` of them or fewer."""
        return tuple(map(Fields, self._list(name, most)))

    def _list(self, name: str, most: int) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"{name} is not a list of up to {most}")
        return value

    def _get(self, name: str) -> Any:
        if name not in self._value:
            raise ValueError(f"it lacks {name}")
        return self._value[name]
