"""Show what a command cost in requests to its storage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.text import human_size

if TYPE_CHECKING:
    from backyfs.model import RequestCount, RequestCounts


def requests_text(counts: RequestCounts) -> str:
    """Return the requests as a line, the most frequent first: `requests: 132 put (1.2 GiB), 4 get (12.0 KiB)`."""
    by_number = sorted(counts.items(), key=lambda one: -one[1].requests)
    return "requests: " + ", ".join(f"{count.requests} {verb}{_remarks(count)}" for verb, count in by_number)


def requests_lines(counts: RequestCounts) -> list[str]:
    """Return that line, or none if the storage takes no requests."""
    return [requests_text(counts)] if counts else []


def _remarks(count: RequestCount) -> str:
    remarks = []
    if count.bytes:
        remarks.append(human_size(count.bytes))
    if count.repeated:
        remarks.append(f"{count.repeated} repeated")
    return f" ({', '.join(remarks)})" if remarks else ""
