"""Split long lists of parameters into batches that every database accepts in one statement."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    _T = TypeVar("_T")

_BATCH = 512  # parameters per statement; SQLite before 3.32 accepts 999


def batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Yield the items in lists of bounded length, in order."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
