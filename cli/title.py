"""The title of the process: what `ps` shows of a command that takes long.

    backyfs [Backing up disk (38.3% 292.1MiB/s ETA 2s)]

A title may not look like one of backy2, whose running commands an upgrade waits for: see
`backyfs.engine.backy2_processes`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.cli.text import printable
from backyfs.engine.pace import Pace

if TYPE_CHECKING:
    from backyfs.model import Progress

_PROGRAM = "backyfs"
_BACKY2 = "backy2"
_EVERY_S = 0.5


@dataclass(slots=True)
class ProcessName:
    """What processes of this program are called; known when the configuration is."""

    text: str = _PROGRAM


def title_of(process_name: str, activity: str) -> str:
    """Return the title of a process that does something.

    A configuration that was made for backy2 says so in `process_name`; ours is our own then. Under any other name
    the title says what the program is.
    """
    if process_name in {_PROGRAM, _BACKY2}:
        return f"{_PROGRAM} [{activity}]"
    return f"{process_name} [{_PROGRAM}: {activity}]"


class TitleProgress:
    """Shows what it is told, and says it in the title of the process, which comes back at the end."""

    def __init__(self, process_name: str, shown: Progress) -> None:
        self._process_name = process_name
        self._shown = shown
        self._label = ""
        self._pace = Pace(total_bytes=0, started=0.0)
        self._told = 0.0
        self._title_before: str | None = None

    def start(self, label: str, total_bytes: int) -> None:
        """Say what begins."""
        from setproctitle import getproctitle  # noqa: PLC0415 - most commands do without

        self._shown.start(label, total_bytes)
        if self._title_before is None:
            self._title_before = getproctitle()
        self._label = printable(label)
        self._pace = Pace(total_bytes=total_bytes, started=time.monotonic())
        self._tell(self._pace.started)

    def advance(self, amount_bytes: int) -> None:
        """Count, and say it now and then."""
        self._shown.advance(amount_bytes)
        self._pace.done_bytes += amount_bytes
        now = time.monotonic()
        if now - self._told >= _EVERY_S:
            self._tell(now)

    def stop(self) -> None:
        """Give the process its title back."""
        from setproctitle import setproctitle  # noqa: PLC0415 - as above

        self._shown.stop()
        if self._title_before is not None:
            setproctitle(self._title_before)
            self._title_before = None

    def _tell(self, now: float) -> None:
        from setproctitle import setproctitle  # noqa: PLC0415 - as above

        self._told = now
        pace = self._pace.text(now)
        setproctitle(title_of(self._process_name, f"{self._label} ({pace})" if pace else self._label))
