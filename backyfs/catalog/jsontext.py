"""Facts as JSON and back: strict, each value of the kind that is expected, or ValueError."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from backyfs import values

if TYPE_CHECKING:
    from backyfs.values import Raw, Rule


def write_json(value: dict[str, Any]) -> bytes:
    """Return a dict with texts, numbers, times, bytes and lists of them as JSON."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode()


def _checked(name: str, rule: Rule, value: Any) -> Any:
    try:
        return rule.check(value)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error


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

    def value(self, name: str, rule: Rule) -> Any:
        """Return a text, a number, or true or false, that keeps a rule."""
        return _checked(name, rule, self._get(name))

    def optional_number(self, name: str, rule: Rule) -> int | None:
        """Return a number, or None."""
        return None if self._get(name) is None else self.value(name, rule)

    def time(self, name: str, rule: Rule = values.DATE) -> datetime:
        """Return a time."""
        value = self._get(name)
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
        if time.tzinfo is None:
            raise ValueError(f"{name} is a time of no zone")
        return _checked(name, rule, time)  # type: ignore[no-any-return]

    def optional_time(self, name: str, rule: Rule = values.DATE) -> datetime | None:
        """Return a time, or None."""
        return None if self._get(name) is None else self.time(name, rule)

    def raw(self, name: str, rule: Raw) -> bytes:
        """Return bytes that stand as hexadecimal digits."""
        digits = self._get(name)
        if not isinstance(digits, str) or len(digits) > 2 * rule.most:
            raise ValueError(f"{name} is {values.shown(digits)}, which is not up to {rule.most} bytes as digits")
        return _checked(name, rule, bytes.fromhex(digits))  # type: ignore[no-any-return]

    def optional_raw(self, name: str, rule: Raw) -> bytes | None:
        """Return bytes, or None."""
        return None if self._get(name) is None else self.raw(name, rule)

    def texts(self, name: str, rule: Rule, most: int) -> tuple[str, ...]:
        """Return a list of texts, `most` of them or fewer."""
        return tuple(_checked(name, rule, value) for value in self._list(name, most))

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
