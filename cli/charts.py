"""Draw small charts as lines of text for a terminal. Pure.

Every chart can be drawn in ASCII and without colours. No chart depends on colours alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """The characters that charts are drawn with."""

    levels: str             # fill levels of one character of a column, from empty to full
    parts: tuple[str, ...]  # for each kind of part of a bar
    hole: str               # this and the following: states of a block on the map of an image
    same: str
    changed: str
    new: str
    absent: str


UNICODE = Glyphs(
    levels=" ▁▂▃▄▅▆▇█", parts=("█", "▒", "·"), hole="·", same="░", changed="█", new="▓", absent="?"
)
ASCII = Glyphs(levels=" .:#", parts=("#", "=", "."), hole=".", same="-", changed="#", new="+", absent="?")


def glyphs_for(encoding: str | None) -> Glyphs:
    """Return the glyphs that a stream with this encoding can show."""
    try:
        "".join((UNICODE.levels, *UNICODE.parts, UNICODE.same, UNICODE.new)).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One line of a bar chart."""

    label: str
    parts: tuple[int, ...]  # of the bar, from left to right
    note: str = ""          # shown after the bar


def bars(rows: Sequence[Bar], width: int, glyphs: Glyphs) -> list[str]:
    """Return a line of `width` characters for each row: label, bar, note. All bars have the same scale."""
    if not rows:
        return []
    labels = max(len(row.label) for row in rows)
    notes = max(len(row.note) for row in rows)
    room = max(10, width - labels - notes - 2)
    largest = max(sum(row.parts) for row in rows)
    lines = []
    for row in rows:
        drawn = "".join(
            glyph * cells for glyph, cells in zip(glyphs.parts, _cells(row.parts, largest, room), strict=False)
        )
        lines.append(f"{row.label:<{labels}} {drawn:<{room}} {row.note:>{notes}}".rstrip())
    return lines


def columns(values: Sequence[float | None], width: int, height: int, glyphs: Glyphs) -> list[str]:
    """Return a column chart from 0 to the largest value, in `height` lines, with the first value at the left.

    If there are more values than `width`, neighbours are averaged. None is a gap.
    """
    fitted = _fit(values, width)
    largest = max((value for value in fitted if value is not None), default=0.0)
    full = len(glyphs.levels) - 1
    lines = []
    for line in reversed(range(height)):
        cells = []
        for value in fitted:
            if value is None or largest <= 0:
                cells.append(" ")
                continue
            # Values above zero are always visible.
            steps = max(round(value / largest * height * full), 1 if value > 0 else 0)
            cells.append(glyphs.levels[min(max(steps - line * full, 0), full)])
        lines.append("".join(cells))
    return lines


def titled(title: str, values: Sequence[float | None], show: Callable[[float], str], width: int, glyphs: Glyphs,
           height: int = 4) -> list[str]:  # fmt: skip
    """Return a column chart with a title above it and its scale at the left."""
    known = [value for value in values if value is not None]
    if not known:
        return [f"{title}: unknown"]
    top = show(max(known))
    margin = max(len(top), 1)
    drawn = columns(values, max(10, width - margin - 1), height, glyphs)
    marks = [top, *[""] * (height - 2), "0"]
    return [title, *(f"{mark:>{margin}} {line}".rstrip() for mark, line in zip(marks, drawn, strict=True))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of cell on a map."""

    glyph: str
    name: str
    colour: str  # SGR parameters, ECMA-48


def picture(
    runs: Iterable[tuple[int, int, int]], length: int, kinds: Sequence[Kind], width: int, height: int, *, colours: bool
) -> tuple[list[str], int]:
    """Return the lines of a map of `length` places, and the number of places per character.

    `runs` are (first, count, number of the kind), in order. A character for several places shows the kind with the
    highest number among them, so a single changed block among thousands is visible.
    """
    if length == 0:
        return [], 1
    scale = max(1, -(-length // (width * height)))
    cells = bytearray(-(-length // scale))
    for first, count, kind in runs:
        for cell in range(first // scale, (first + count - 1) // scale + 1):
            cells[cell] = max(cells[cell], kind)
    lines = [_coloured(cells[start : start + width], kinds, colours=colours) for start in range(0, len(cells), width)]
    return lines, scale


def _coloured(cells: bytearray, kinds: Sequence[Kind], *, colours: bool) -> str:
    if not colours:
        return "".join(kinds[cell].glyph for cell in cells)
    parts = []
    before = -1
    for cell in cells:
        if cell != before:
            parts.append(f"\x1b[{kinds[cell].colour}m")
        parts.append(kinds[cell].glyph)
        before = cell
    return "".join((*parts, _RESET))


def _cells(parts: Sequence[int], largest: int, room: int) -> list[int]:
    """Return the number of characters of each part. The ends are rounded, so the whole bar has the right length."""
    cells, done, total = [], 0, 0
    for part in parts:
        total += part
        end = round(total * room / largest) if largest > 0 else 0
        cells.append(end - done)
        done = end
    return cells


def _fit(values: Sequence[float | None], width: int) -> list[float | None]:
    if len(values) <= width:
        return list(values)
    fitted: list[float | None] = []
    for cell in range(width):
        some = [
            value
            for value in values[cell * len(values) // width : (cell + 1) * len(values) // width]
            if value is not None
        ]
        fitted.append(sum(some) / len(some) if some else None)
    return fitted
