"""Watch a source while it is read: warn of changes at the start and at the end, and check its size."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from backyfs.sources.protocol import check_size

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.sources.change import SourceWarning
    from backyfs.sources.protocol import Source

_log = logging.getLogger(__name__)


class Watch:
    """One source from the moment before it is read to the moment after. For one thread."""

    def __init__(self, source: Source, since: datetime | None) -> None:
        """Begin, and warn immediately, while a long backup can still be stopped. `since`: when an earlier run began.

        Raises:
            SourceError: the source cannot be checked.
        """
        self._source = source
        self._since = since
        self._warnings: dict[str, SourceWarning] = {}
        self._look()

    def end(self) -> tuple[SourceWarning, ...]:
        """Return all warnings.

        Raises:
            SourceError: the source shrank or grew, so what was read is not an image; or it cannot be checked.
        """
        check_size(self._source)
        self._look()
        return tuple(self._warnings.values())

    def _look(self) -> None:
        for warning in self._source.signs_of_change(self._since):
            if warning.text not in self._warnings:
                self._warnings[warning.text] = warning
                _log.warning("%s", warning.text)
