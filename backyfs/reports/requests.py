"""What a command cost in requests to its storage."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.model import RequestCounts


def requests_by_verb(counts: RequestCounts) -> dict[str, object]:
    """Return the requests by verb, as an object in reports: empty if the storage takes none."""
    return {verb: asdict(count) for verb, count in counts.items()}
