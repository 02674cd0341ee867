"""Set the title of the process, which `ps` shows for a long-running command.

    backyfs [Backing up disk (38.3% 292.1MiB/s ETA 2s)]

A title must not look like one of backy2, because an upgrade waits for running commands of backy2: see
`backyfs.engine.setup.backy2_processes`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.cli.text import printable
from backyfs.work.progress import TextProgress

if TYPE_CHECKING:
    from backyfs.model import Progress

_PROGRAM = "backyfs"
_BACKY2 = "backy2"
_EVERY_S = 0.5


@dataclass(slots=True)
class ProcessName:
    """The name for processes of this program; known once the configuration is loaded."""

    text: str = _PROGRAM


def title_of(process_name: str, activity: str) -> str:
    """Return the title of a process with this activity.

    If `process_name` is from a configuration of backy2, our own name is used. With any other name, the title also
    contains the name of the program.
    """
    if process_name in {_PROGRAM, _BACKY2}:
        return f"{_PROGRAM} [{activity}]"
    return f"{process_name} [{_PROGRAM}: {activity}]"


def title_progress(process_name: str, shown: Progress) -> TextProgress:
    """Return a progress that also updates the title of the process, until it stops."""
    title = _Title(process_name)
    return TextProgress(shown, title.say, title.restore, every_s=_EVERY_S)


class _Title:
    """The title of this process, and its previous title."""

    def __init__(self, process_name: str) -> None:
        self._process_name = process_name
        self._before: str | None = None

    def say(self, label: str, pace: str) -> None:
        """Show the activity of the process."""
        from setproctitle import setproctitle  # noqa: PLC0415 - most commands do not need it

        if self._before is None:
            self._before = _current_title()
        activity = printable(label)
        setproctitle(title_of(self._process_name, f"{activity} ({pace})" if pace else activity))

    def restore(self) -> None:
        """Restore the previous title."""
        from setproctitle import setproctitle  # noqa: PLC0415 - as above

        if self._before is not None:
            setproctitle(self._before)
            self._before = None


def _current_title() -> str:
    from setproctitle import getproctitle  # noqa: PLC0415 - as above

    try:
        return getproctitle()
    except UnicodeDecodeError:  # it cannot return arguments that are not UTF-8, such as some file names
        return printable(" ".join(sys.orig_argv))
