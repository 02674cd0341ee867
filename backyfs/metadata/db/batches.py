"""Cut long lists of parameters into statements that every database takes."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    _T = TypeVar("_T")

_BATCH = 512  # parameters a statement; SQLite before 3.32 takes 999


def batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Yield the items in lists of bounded length, in order."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
