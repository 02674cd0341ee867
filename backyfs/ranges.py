"""Keep sets of whole numbers, such as blocks or bytes, as ranges. Pure.

Time and memory grow with the number of ranges, not with how many numbers they contain.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Range: TypeAlias = tuple[int, int]  # [start, stop)


@dataclass(frozen=True, slots=True)
class Ranges:
    """A set of numbers: sorted, non-empty ranges that neither touch nor overlap. Made by `ranges`."""

    parts: tuple[Range, ...] = ()

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.parts)

    def __iter__(self) -> Iterator[Range]:
        return iter(self.parts)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self.parts, number, key=_start)
        return place > 0 and number < self.parts[place - 1][1]

    def __or__(self, other: Ranges) -> Ranges:
        return ranges((*self.parts, *other.parts))

    def __and__(self, other: Ranges) -> Ranges:
        return self - (self - other)

    def __sub__(self, other: Ranges) -> Ranges:
        left: list[Range] = []
        place = 0
        for start, stop in self.parts:
            rest = start
            while place < len(other.parts) and other.parts[place][1] <= start:
                place += 1
            at = place  # the subtracted range may also reach into the next one
            while at < len(other.parts) and other.parts[at][0] < stop:
                if rest < other.parts[at][0]:
                    left.append((rest, other.parts[at][0]))
                rest = other.parts[at][1]
                at += 1
            if rest < stop:
                left.append((rest, stop))
        return Ranges(tuple(left))

    def within(self, start: int, stop: int) -> Iterator[Range]:
        """Yield the parts of [start, stop) that are in the set, in order."""
        for place in range(max(0, bisect_right(self.parts, start, key=_start) - 1), len(self.parts)):
            first, end = self.parts[place]
            if first >= stop:
                return
            if end > start:
                yield max(first, start), min(end, stop)

    def picks(self, places: Iterable[int]) -> list[int]:
        """Return the numbers at these positions of the sorted set; position 0 is the smallest number."""
        ends = list(accumulate(stop - start for start, stop in self.parts))
        found = []
        for place in places:
            part = bisect_right(ends, place)
            found.append(self.parts[part][1] - (ends[part] - place))
        return found


def ranges(parts: Iterable[Range]) -> Ranges:
    """Return the set of all numbers in these ranges. They may be empty, overlap, and be in any order."""
    merged: list[Range] = []
    for start, stop in sorted(parts):
        if stop <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return Ranges(tuple(merged))


def _start(part: Range) -> int:
    return part[0]
