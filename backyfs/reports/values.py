"""What reports consist of: fields, rows of fields, and objects, which have lists of rows among their fields."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# A dict of numbers becomes the text 0:12,2:300. Only JSON shows objects.
Field: TypeAlias = "str | int | float | bool | datetime | Sequence[str] | dict[int, int] | dict[str, object] | None"
Row: TypeAlias = "dict[str, Field]"
Object: TypeAlias = "Mapping[str, Field | list[Row]]"


def to_json(value: object) -> object:
    """Return a value as `json` takes it: times as text in UTC, every sequence as a list."""
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        return {name: to_json(field) for name, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(one) for one in value]
    return value


def seconds(duration_s: float) -> float:
    """Return a duration as reports have it, in milliseconds at most."""
    return round(duration_s, 3)
